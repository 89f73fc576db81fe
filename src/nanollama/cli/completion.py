"""The command ``completion``: the name of a shell in, a script that completes commands and model names out.

The scripts know the commands and options as they are now, and ask ``nanollama list --names`` for the models.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The type argparse gives to what add_subparsers returns; it has no public name.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXAMPLES = """\
To have it in every new shell:
  bash   echo 'eval "$(nanollama completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(nanollama completion zsh)"' >> ~/.zshrc
  fish   nanollama completion fish > ~/.config/fish/completions/nanollama.fish
"""

TAKES_MODELS = ("run", "show", "rm", "cp", "path", "verify", "pull", "serve", "bench", "stop", "perplexity")
"""Commands whose words are names of models."""

_BASH = """\
_nanollama() {
    local line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]} found= each
    if [ "$COMP_CWORD" -eq 1 ]; then
        found="@commands@"
    elif [[ $word == -* ]]; then
        case ${COMP_WORDS[1]} in
@options@
        esac
    else
        case ${COMP_WORDS[1]} in
            @models@) found=$(nanollama list --names 2>/dev/null) ;;
            completion) found="bash zsh fish" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$found" -- "$word"))
    # Readline takes a colon for the beginning of a word: give it what comes after the last one.
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        local before=${word%"${word##*:}"}
        for each in "${!COMPREPLY[@]}"; do
            COMPREPLY[$each]=${COMPREPLY[$each]#"$before"}
        done
    fi
}
complete -o default -F _nanollama nanollama
"""

_ZSH = """\
#compdef nanollama
_nanollama() {
    local -a found
    if (( CURRENT == 2 )); then
        found=(@commands@)
    elif [[ $words[CURRENT] == -* ]]; then
        case $words[2] in
@options@
        esac
    else
        case $words[2] in
            @models@) found=(${(f)"$(nanollama list --names 2>/dev/null)"}) ;;
            completion) found=(bash zsh fish) ;;
        esac
    fi
    (( $#found )) && compadd -a found
    [[ $words[CURRENT] == */* || $words[CURRENT] == .* ]] && _files
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _nanollama nanollama
"""


def add_completion_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama completion`` to the command line."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes commands and names in a shell",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    parser.set_defaults(handler=completion_command, commands=lambda: options_of(subparsers))


def completion_command(args: argparse.Namespace) -> int:
    """Prints the script for ``args.shell``."""
    print(script(args.shell, args.commands()), end="")
    return 0


def options_of(subparsers: "Subparsers") -> dict[str, list[str]]:
    """The long options of each command."""
    return {
        name: sorted(option for option in parser._option_string_actions if option.startswith("--"))
        for name, parser in subparsers.choices.items()
    }


def script(shell: str, commands: dict[str, list[str]]) -> str:
    """The completion script of ``shell`` for ``commands`` with their options."""
    models = [name for name in TAKES_MODELS if name in commands]
    if shell == "fish":
        return _fish(commands, models)
    text, pattern = (_BASH, '{}) found="{}" ;;') if shell == "bash" else (_ZSH, "{}) found=({}) ;;")
    cases = [" " * 12 + pattern.format(name, " ".join(options)) for name, options in commands.items()]
    for mark, value in (
        ("@commands@", " ".join(commands)),
        ("@options@", "\n".join(cases)),
        ("@models@", "|".join(models)),
    ):
        text = text.replace(mark, value)
    return text


def _fish(commands: dict[str, list[str]], models: list[str]) -> str:
    begin = "complete -c nanollama"
    lines = [f"{begin} -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
    for name, options in commands.items():
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [f"{begin} {seen} -l {option.removeprefix('--')}" for option in options]
    seen = f"-n '__fish_seen_subcommand_from {' '.join(models)}'"
    lines.append(f"{begin} {seen} -a '(nanollama list --names 2>/dev/null)'")
    lines.append(f"{begin} -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'")
    return "\n".join(lines) + "\n"
