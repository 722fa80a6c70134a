"""Claim: what is learned predicts well, is judged rightly, and reaches production only when it is proven.

Each claim is a module of `benchmarks.learning_claims`; name some on the command line to measure only those.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

CLAIMS = sorted(path.stem for path in (Path(__file__).parent / "learning_claims").glob("[!_]*.py"))


def main() -> None:
    """Measure the claims named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("claims", nargs="*", help=f"any of {', '.join(CLAIMS)}")
    chosen = parser.parse_args().claims or CLAIMS
    unknown = set(chosen) - set(CLAIMS)
    if unknown:
        parser.error(f"unknown claim {', '.join(sorted(unknown))}; there are {', '.join(CLAIMS)}")
    for claim in chosen:
        import_module(f"benchmarks.learning_claims.{claim}").measure()


if __name__ == "__main__":
    main()
