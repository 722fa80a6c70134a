"""`control-panel simulate`: serve simulated models on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")
    ] = 8790,
    seed: Annotated[int, typer.Option(help="The hidden truth follows from it.")] = 7,
    latency_ms: Annotated[
        float, typer.Option(min=0, help="Median latency of a call, in milliseconds.")
    ] = 150,
    latency_spread: Annotated[
        float, typer.Option(min=0, max=3, help="Standard deviation of the latency's logarithm.")
    ] = 0.5,
    failure_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of calls that fail for a while.")
    ] = 0.05,
    refusal_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of tasks that a model refuses.")
    ] = 0.01,
    storm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="START:SECONDS:SHARE[:KIND]",
            help="From START seconds on, for SECONDS, this share of calls fails. May be repeated.",
        ),
    ] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests per minute for each model.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens per minute for each model.")] = None,
    token_scale: Annotated[
        float, typer.Option(min=0, help="Factor on the simulated agent turns in the billed tokens.")
    ] = 1.0,
    model: Annotated[
        list[str] | None, typer.Option(help="Serve only this model. May be repeated. Default: any name.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File to append a JSON line to for every call.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1,
) -> None:
    """Serve simulated models on 127.0.0.1, in the formats of OpenAI and Anthropic, until Ctrl-C.

    Prints "ready http://127.0.0.1:PORT". Point the platform at it with CP_SIMULATOR_URL.
    """
    from cp_resources.simulator.options import Options
    from cp_resources.simulator.server import serve
    from cp_resources.simulator.weather import Storm

    options = Options(
        seed=seed,
        latency_ms=latency_ms,
        latency_spread=latency_spread,
        failure_share=failure_share,
        refusal_share=refusal_share,
        storms=tuple(map(Storm.parse, storm or ())),
        token_scale=token_scale,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        models=frozenset(model or ()),
        journal=journal,
    )
    serve(options, port, workers, lambda address: typer.echo(f"ready {address}"))
