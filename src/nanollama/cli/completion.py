"""The command ``completion``: the name of a shell in, a script that completes commands and model names out.

The scripts know the commands and options as they are now, and ask ``nanollama list --names`` for the models.
"""

import argparse
from typing import TYPE_CHECKING

from nanollama.cli.parsers import add_command

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers

EXAMPLES = """\
To have it in every new shell:
  bash   echo 'eval "$(nanollama completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(nanollama completion zsh)"' >> ~/.zshrc
  fish   nanollama completion fish > ~/.config/fish/completions/nanollama.fish
"""

TAKES_MODELS = (
    *("run", "show", "rm", "cp", "path", "verify", "pull", "serve", "bench", "stop"),
    *("perplexity", "quantize"),
)
"""Commands whose words are names of models."""

TAKES_FILES = ("run", "show", "pull", "serve", "bench", "perplexity", "quantize", "import", "create")
"""Commands whose words, or the values of whose options, are paths."""

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
        case $words[2] in
            @files@) _files ;;
        esac
    fi
    (( $#found )) && compadd -a found
}
if [[ $funcstack[1] == _nanollama ]]; then  # loaded by the first completion, from a file in fpath
    _nanollama
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _nanollama nanollama
fi
"""

_FISH = """\
function __nanollama_command
    set -l words (commandline -opc)
    test (count $words) -ge 2; and contains -- $words[2] $argv
end
"""


def add_completion_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama completion`` to the command line."""
    help = "print a script that completes commands and names in a shell"
    parser = add_command(subparsers, "completion", completion_command, help, examples=EXAMPLES)
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    parser.set_defaults(commands=lambda: options_of(subparsers))


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
    files = [name for name in TAKES_FILES if name in commands]
    if shell == "fish":
        return _fish(commands, models, files)
    text, pattern = (_BASH, '{}) found="{}" ;;') if shell == "bash" else (_ZSH, "{}) found=({}) ;;")
    cases = [" " * 12 + pattern.format(name, " ".join(options)) for name, options in commands.items()]
    for mark, value in (
        ("@commands@", " ".join(commands)),
        ("@options@", "\n".join(cases)),
        ("@models@", "|".join(models)),
        ("@files@", "|".join(files)),
    ):
        text = text.replace(mark, value)
    return text


def _fish(commands: dict[str, list[str]], models: list[str], files: list[str]) -> str:
    begin = "complete -c nanollama"

    def after(*names: str) -> str:
        return f"{begin} -n '__nanollama_command {' '.join(names)}'"

    lines = [f"{begin} -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
    lines.append(f"{after(*(name for name in commands if name not in files))} -f")
    for name, options in commands.items():
        lines += [f"{after(name)} -l {option.removeprefix('--')}" for option in options]
    lines.append(f"{after(*models)} -a '(nanollama list --names 2>/dev/null)'")
    lines.append(f"{after('completion')} -a 'bash zsh fish'")
    return _FISH + "\n".join(lines) + "\n"
