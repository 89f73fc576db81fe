"""Perplexity of one model file on one text, ours and llama.cpp's, over the same windows.

    python bench/perplexity_vs_llamacpp.py MODEL.gguf TEXT [--n-ctx 512] [--max-windows 40] [--device cpu]

Needs llama-cpp-python (a benchmark dependency, not installed by the scripts). Both score the same ids by
llama-perplexity's convention; ours come from our tokenizer, and the script says whether llama.cpp's differ.
"""

import argparse
import json
import math

from nanollama import LLM
from nanollama.perplexity import negative_log_likelihood, perplexity
from peer import Peer


def main() -> None:
    """Measure both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--max-windows", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    with LLM(args.model, device=args.device) as llm:
        ours = perplexity(llm, text, n_ctx=args.n_ctx, max_windows=args.max_windows)
        ids = llm.tokenizer.encode(text, add_special=True)
        bos = llm.tokenizer.bos_id if llm.tokenizer.adds_bos else None
    peer = Peer(args.model, args.n_ctx, args.threads)
    total, first = 0.0, args.n_ctx // 2
    for w in range(ours.windows):
        window = ids[w * args.n_ctx : (w + 1) * args.n_ctx]
        if bos is not None:
            window[0] = bos
        total += negative_log_likelihood(peer.logits(window, first)[:-1], window[first + 1 :])
    theirs = math.exp(total / ours.tokens)
    print(
        json.dumps(
            {
                "model": args.model.rsplit("/", 1)[-1],
                "windows": ours.windows,
                "tokens": ours.tokens,
                "perplexity_ours": round(ours.perplexity, 4),
                "perplexity_llamacpp": round(theirs, 4),
                "difference_percent": round(100 * (ours.perplexity / theirs - 1), 3),
                "same_tokens": peer.tokenize(text) == ids,
            }
        )
    )


if __name__ == "__main__":
    main()
