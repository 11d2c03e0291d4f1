"""Start-up: `genkit --help` and `import genkit`, beside a bare Python. Prints medians of several interleaved rounds.

    python benchmarks/startup.py [--rounds N]

To reach: `genkit --help` under 0.3 s, `import genkit` under 0.1 s, and neither imports torch, gradio or diffusers.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import genkit": ["-c", "import genkit"],
    "genkit --help": ["-m", "genkit", "--help"],
    "genkit style-transfer --help": ["-m", "genkit", "style-transfer", "--help"],
}
HEAVY = ("torch", "gradio", "diffusers")


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def heavy_imports(arguments: list[str]) -> list[str]:
    """Which heavy packages a run of these arguments imports, read from Python's own log of imports."""
    log = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], check=True, capture_output=True, text=True
    ).stderr
    names = {line.rsplit("|", 1)[-1].strip() for line in log.splitlines()}
    return [name for name in HEAVY if name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):  # the first warms the disk's cache
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    bare = statistics.median(times["python -c pass"][1:])
    print("| command | seconds (median) | above a bare Python | imports of torch, gradio, diffusers |")
    print("| --- | --- | --- | --- |")
    for name, arguments in COMMANDS.items():
        median = statistics.median(times[name][1:])
        print(f"| `{name}` | {median:.3f} | {median - bare:.3f} | {', '.join(heavy_imports(arguments)) or 'none'} |")


if __name__ == "__main__":
    main()
