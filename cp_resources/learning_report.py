"""The learning report of a day: what was learned, what it changed and why, for somebody who was not there.

A report is sections of words, tables and pictures. The same sections become Markdown and one self-contained page of
HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any, LiteralString

import numpy as np
import pandas as pd

from cp_core.assignment.predict import shift_log_odds
from cp_core.learning.candidate import Change, Ground
from cp_core.learning.cost_effectiveness import price_of
from cp_core.learning.expectations import cells_of
from cp_core.learning.experiments.verdict import Comparison, ExperimentResults
from cp_core.learning.gates.verdict import REQUIRED, Verdict
from cp_core.learning.performance import ALL
from cp_core.learning.success_cells import SuccessFound
from cp_core.learning.traits_seen import Seen, chosen_tasks, text_shifts
from cp_resources.candidates import Candidates
from cp_resources.champion import ConfigurationStore
from cp_resources.configuration import Configuration
from cp_resources.database import Database
from cp_resources.gate_results import GateResults
from cp_resources.learning_results import LearningResults
from cp_resources.performance import PerformanceStore
from cp_resources.text_learning import MOST_TASKS
from cp_resources.trait_models import TraitModels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PRICE_DAYS = 14
_MOST_CHANGES = 10  # of a kind
_BINS = 10
_MOST_SEQUENCES = 12
_FAILED = "NOT PASSED"
_RATIOS = (0.05, 20.0)  # what is beyond is drawn at the ends
_TICKS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 10, 20)
_MEASURES = {"success": "share of success", "quality": "quality", "value": "value", "cost_usd": "cost in USD"}


@dataclass(frozen=True)
class Section:
    """One part of a report; a table's cells and the words are plain text, pictures are PNG by what they show."""

    title: str
    words: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[tuple[str, bytes]] = ()


class LearningReports:
    """Makes reports, and keeps them in table learning_reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, day: date, configuration: Configuration, rows: pd.DataFrame) -> list[Section]:
        """The sections of a day's report, from what is stored and the outcomes of the window that ends with the day."""
        made = Candidates(self._database).read(day)
        version, changes = (made[0], made[2]) if made else (None, [])
        verdicts = GateResults(self._database).latest(version, day) if version else {}
        return [
            self._in_short(day, version, changes, verdicts, len(rows)),
            _gates(verdicts),
            _changes(changes),
            self._ranking(day),
            self._calibration(rows, configuration),
            self._texts(day),
            _tokens(rows),
            self._prices(day),
            self._experiments(day),
        ]

    def write(self, day: date, sections: Sequence[Section]) -> None:
        """Keep a day's report in place of an earlier one."""
        title = f"What was learned on {day}"
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO learning_reports (day, html, markdown) VALUES (%s, %s, %s) ON CONFLICT (day) DO UPDATE "
                "SET html = excluded.html, markdown = excluded.markdown, made_at = now()",
                [day, as_html(title, sections), as_markdown(title, sections)],
            )

    def read(self, day: date) -> tuple[str, str] | None:
        """HTML and Markdown of a day's report; None if there is none."""
        found = self._database.fetch("SELECT html, markdown FROM learning_reports WHERE day = %s", [day])
        return found[0] if found else None

    def _in_short(
        self,
        day: date,
        version: str | None,
        changes: Sequence[Change],
        verdicts: Mapping[str, Verdict],
        outcomes: int,
    ) -> Section:
        if version is None:
            says = "No candidate was made for this day."
        elif not changes:
            says = "The outcomes call for no change: what is in force stays as it is."
        else:
            says = (
                f"The candidate {version[:12]} moves {len(changes)} numbers. {self._fate(version, verdicts)}"
            )
        first = (
            f"This report looks at the tasks submitted on {day} and the days before: {outcomes:,} attempts."
        )
        return Section("In short", f"{first} {says}")

    def _fate(self, version: str, verdicts: Mapping[str, Verdict]) -> str:
        for line in ConfigurationStore(self._database).history(400):
            if line.to_hash == version and line.action == "promote":
                return f"It was promoted by {line.by}: {line.reason}."
        failed = [
            what for gate, what in REQUIRED.items() if gate not in verdicts or not verdicts[gate].has_passed
        ]
        return (
            f"It was not promoted, and what was in force before goes on deciding: {len(failed)} of {len(REQUIRED)} "
            f"things that it has to prove were not proven: “{'” “'.join(failed)}”"
            if failed
            else "Every gate was passed; it has not been promoted."
        )

    def _calibration(self, rows: pd.DataFrame, configuration: Configuration) -> Section:
        """Of tasks whose text was looked at, where what is in force looks at texts: of a choice of them by hash."""
        eye = configuration.learned.calibration.trait_model
        if eye is None or rows.empty:
            return _calibration(rows, configuration, {})
        seen = TraitModels(self._database).look_at(chosen_tasks(rows["task"], MOST_TASKS).tolist(), eye)
        return _calibration(rows[seen.known(rows["task"])], configuration, {eye: seen})

    def _texts(self, day: date) -> Section:
        found = LearningResults(self._database).read(day, "success_model")
        texts = SuccessFound.model_validate(found).texts if found else None
        if texts is None:
            return Section("What texts say", "Nobody looked into it on this day.")
        rows = [
            (name, *("" if each is None else f"{each:.4f}" for each in pair))
            for name, pair in (("AUC", texts.auc), ("Brier score", texts.brier))
            if pair is not None
        ]
        words = (
            "Predictions by model, domain and complexity alone, and with the text of the task, on later days than they "
            f"were learned from. {texts.says[0].upper()}{texts.says[1:]}."
        )
        return Section("What texts say", words, ["measure", "kind alone", "kind and text"], rows)

    def _ranking(self, day: date) -> Section:
        found = PerformanceStore(self._database).estimates(day)
        return _ranking(None if found is None else found[1])

    def _prices(self, day: date) -> Section:
        rows = self._database.fetch(_PRICES, [day - timedelta(days=_PRICE_DAYS), day])
        words = (
            "The price of an account is what a dollar, or a million tokens, more of it would have brought, in value "
            "points, round by round. A price of 0 means that there was more than enough."
        )
        if not rows:
            return Section(
                "Prices of quota", f"{words} No round of the solver was run: the written policy decides."
            )
        frame = pd.DataFrame(rows, columns=["at", "account", "price"])
        frame["price"] = [price_of(account, day, price).value for _, account, price in rows]
        told = frame.groupby("account")["price"].agg(["size", "min", "mean", "max"])
        table = [
            (str(account), f"{rounds:,}", *map(_figures, prices))
            for account, rounds, *prices in told.itertuples(name=None)
        ]
        columns = ["account", "rounds", "lowest", "mean", "highest"]
        dear = frame[frame["account"].isin(told.index[told["max"] > 0])]
        if dear["at"].nunique() < 2:
            few = "no account was short" if dear.empty else "there was one round"
            return Section("Prices of quota", f"{words} There is nothing to draw: {few}.", columns, table)
        figure, axes = _figure()
        for account, prices in dear.groupby("account"):
            axes.step(prices["at"], prices["price"], where="post", marker=".", label=str(account))
        axes.set_ylim(bottom=0)
        axes.set_ylabel("value points")
        axes.legend(fontsize=7, frameon=False)
        figure.autofmt_xdate()
        shows = "Price of each account that was short, over time"
        return Section("Prices of quota", words, columns, table, [(shows, _png(figure))])

    def _experiments(self, day: date) -> Section:
        found = LearningResults(self._database).read(day, "experiment_results")
        results = ExperimentResults.model_validate(found).experiments if found else ()
        if not results:
            return Section("Experiments", "No experiment was under way.")
        words = (
            "How each arm differs from the control, day by day. The band holds for all days at once: when it leaves 0, "
            "the difference is proven, however often somebody looked."
        )
        rows = [(one.experiment, f"day {one.days}", one.verdict.value, one.reason) for one in results]
        pictures = [
            (
                f"{one.experiment}: {_MEASURES[each.measure]} of {each.arm}, less that of the control",
                _sequence(each),
            )
            for one in results
            for each in one.comparisons
            if each.sequence
        ]
        silent = [one.experiment for one in results if not any(each.sequence for each in one.comparisons)]
        if silent:
            words = f"{words} Nothing has ended yet in {', '.join(silent)}."
        columns = ["experiment", "at", "what to do", "because"]
        return Section("Experiments", words, columns, rows, pictures[:_MOST_SEQUENCES])


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The report as Markdown; pictures are data URIs."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", _plain(section.words)]
        if section.rows:
            parts.append(
                "\n".join(
                    [
                        f"| {' | '.join(section.columns)} |",
                        f"|{' --- |' * len(section.columns)}",
                        *(f"| {' | '.join(_plain(cell) for cell in row)} |" for row in section.rows),
                    ]
                )
            )
        parts += [f"![{shows}]({_uri(png)})" for shows, png in section.pictures]
    return "\n\n".join(parts) + "\n"


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The report as one page that fetches nothing."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><main><h1>{escape(title)}</h1>{''.join(map(_html, sections))}</main></html>"
    )


def _html(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2><p>{escape(section.words)}</p>"]
    if section.rows:
        head = "".join(f"<th>{escape(column)}</th>" for column in section.columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in section.rows)
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    parts += [
        f'<figure><img alt="{escape(shows)}" src="{_uri(png)}"><figcaption>{escape(shows)}</figcaption></figure>'
        for shows, png in section.pictures
    ]
    return "".join([*parts, "</section>"])


def _cell(text: str) -> str:
    return f"<td{' class=failed' if text == _FAILED else ''}>{escape(str(text))}</td>"


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1d2430;background:#f6f7f9;margin:0}"
    "main{max-width:60rem;margin:2rem auto;padding:0 1.5rem}h1{font-size:1.6rem}"
    "section{background:#fff;border:1px solid #e1e5ea;border-radius:8px;padding:.4rem 1.4rem 1rem;margin:1rem 0}"
    "h2{font-size:1.1rem}table{border-collapse:collapse;width:100%;font-size:.88rem}"
    "td,th{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid #eceff3;vertical-align:top;"
    "overflow-wrap:break-word}section{overflow-x:auto}"
    "@media(max-width:40rem){main{padding:0 .5rem}section{padding:.3rem .8rem}table{font-size:.78rem}"
    "td:first-child{overflow-wrap:anywhere}}.failed{color:#b3261e;font-weight:600}"
    "img{max-width:100%}figure{margin:1rem 0}figcaption{color:#66707e;font-size:.82rem}"
)


def _gates(verdicts: Mapping[str, Verdict]) -> Section:
    """What did not pass stands first."""
    results = {
        gate: "not judged" if gate not in verdicts else "passed" if verdicts[gate].has_passed else _FAILED
        for gate in REQUIRED
    }
    rows = [
        (f"{REQUIRED[gate]} ({gate})", results[gate], verdicts[gate].says if gate in verdicts else "")
        for gate in sorted(REQUIRED, key=lambda gate: results[gate] == "passed")
    ]
    words = "What a candidate has to prove before it decides anything. It was promoted only if every line says passed."
    if not verdicts:
        return Section("Gates", f"{words} There was nothing to judge.")
    return Section("Gates", words, ["what must hold", "", "what was found"], rows)


def _changes(changes: Sequence[Change]) -> Section:
    if not changes:
        return Section("What would change", "Nothing.")
    by_kind: dict[str, list[Change]] = {}
    for change in changes:
        by_kind.setdefault(change.key.partition(".")[0], []).append(change)
    rows = [
        (_in_words(change.key), *map(_figures, (change.before, change.found, change.after)))
        for of_kind in by_kind.values()
        for change in sorted(of_kind, key=lambda change: change.share, reverse=True)[:_MOST_CHANGES]
    ]
    counted = ", ".join(f"{len(of_kind)} of {kind}" for kind, of_kind in by_kind.items())
    words = (
        f"The candidate moves {len(changes)} numbers: {counted}. The largest moves of each kind: what the number was, "
        "what the outcomes say, and how far one night may go toward that."
    )
    return Section("What would change", words, ["number", "before", "found", "after"], rows)


def _figures(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _in_words(key: str) -> str:
    """The key of a learned number for a person. Names of models may have dots in them."""
    kind, _, rest = key.partition(".")
    if kind == "success" and rest.count(".") >= 2:
        model, domain, complexity = rest.rsplit(".", 2)
        return f"chance of success of {model}, {domain}, {complexity}"
    if kind == "tokens" and rest.count(".") >= 3:
        model, domain, tokens, which = rest.rsplit(".", 3)
        return f"{which} of {tokens} tokens over the estimate, {model}, {domain}"
    return f"{rest} in scoring.yaml" if kind == "scoring" else key


def _ranking(estimates: pd.DataFrame | None) -> Section:
    words = (
        "How often each model's work is good enough, with the interval in which the true share lies 8 times in 10. An "
        "attempt counts less with age, and not at all if the provider failed or the model's version is an older one."
    )
    if estimates is None:
        return Section("Models", f"{words} Nothing was estimated on this day.")
    models = estimates[(estimates["domain"] == ALL) & (estimates["complexity"] == ALL)]
    models = models.sort_values("success", ascending=False)
    figure, axes = _figure(rows=len(models))
    reach = [models["success"] - models["success_low"], models["success_high"] - models["success"]]
    axes.errorbar(models["success"], models["model"], xerr=reach, fmt="o", color="#4f6bed", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("share of good work")
    table = [
        (
            str(one["model"]),
            f"{one['effective_n']:,.0f}",
            f"{one['success']:.1%} ({one['success_low']:.1%} to {one['success_high']:.1%})",
            f"${one['cost_usd']:,.4f}",
            f"{one['value_per_usd']:,.0f}" if one["cost_usd"] > 0 else "",
        )
        for one in models.to_dict("records")
    ]
    columns = ["model", "attempts, weighed by age", "good work", "an attempt", "value per dollar"]
    return Section("Models", words, columns, table, [("Share of good work of each model", _png(figure))])


def _calibration(rows: pd.DataFrame, configuration: Configuration, seen: Seen) -> Section:
    words = (
        "Attempts are grouped by the chance of success that what is in force gives them; a larger point stands for "
        "more of them. On the dashed line, the chance is right; below it, it is too confident."
    )
    files = configuration.files
    ground = Ground(files.registry, files.policies.prediction, files.scoring, configuration.learned)
    expected = ground.expectations()
    cells = cells_of(rows, expected.models) if len(rows) else np.array([], dtype=np.intp)
    known = cells >= 0
    if not known.any():
        return Section("Is the chance of success right?", f"{words} There are no attempts yet.")
    shifts = text_shifts(rows[known], configuration.learned.calibration, seen)
    chance = shift_log_odds(expected.success.ravel()[cells[known]], shifts)
    won = rows["has_succeeded"].to_numpy(dtype=float)[known]
    bins = np.minimum((chance * _BINS).astype(int), _BINS - 1)
    n = np.bincount(bins, minlength=_BINS)
    there = n > 0
    said = np.bincount(bins, chance, _BINS)[there] / n[there]
    came = np.bincount(bins, won, _BINS)[there] / n[there]
    figure, axes = _figure(height=3.4)
    axes.plot([0, 1], [0, 1], "--", color="#9aa3af", linewidth=1)
    axes.scatter(said, came, s=20 + 180 * n[there] / n.max(), color="#4f6bed", alpha=0.8)
    axes.set_xlabel("chance given")
    axes.set_ylabel("share that succeeded")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    error = float((n[there] * np.abs(said - came)).sum() / n.sum())
    return Section(
        "Is the chance of success right?",
        f"{words} On average it is off by {error:.1%}.",
        pictures=[("Chance of success that was given, and share that succeeded", _png(figure))],
    )


def _tokens(rows: pd.DataFrame) -> Section:
    words = "Tokens used over tokens expected, attempt by attempt: 1 is as expected. Attempts cut off are left out."
    whole = rows[~rows["is_censored"] & (rows["output_tokens"] > 0) & (rows["input_tokens"] > 0)]
    if whole.empty:
        return Section("Estimates of tokens", f"{words} There are no attempts yet.")
    figure, axes = _figure()
    bins = np.geomspace(*_RATIOS, 60)
    table = []
    for kind, colour in (("input", "#4f6bed"), ("output", "#e07a5f")):
        actual, estimate = whole[f"{kind}_tokens"], whole[f"expected_{kind}_tokens"]
        ratio = (actual / estimate).to_numpy(dtype=float)
        axes.hist(np.clip(ratio, *_RATIOS), bins=bins, histtype="step", color=colour, label=kind)
        table.append(
            (kind, f"{len(ratio):,}", f"{actual.sum() / estimate.sum():.2f}", f"{np.median(ratio):.2f}")
        )
    axes.axvline(1, color="#9aa3af", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.minorticks_off()
    axes.set_xlabel("used over expected")
    axes.set_ylabel("attempts")
    axes.legend(fontsize=8, frameon=False)
    columns = ["", "attempts", "total used / expected", "median"]
    return Section(
        "Estimates of tokens", words, columns, table, [("How far off the estimate was", _png(figure))]
    )


def _sequence(comparison: Comparison) -> bytes:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    told = [point for point in comparison.sequence if point.low is not None and point.high is not None]
    points = [(str(point.day), point.difference) for point in comparison.sequence]
    axes.plot(*zip(*points, strict=True), color="#4f6bed", marker=".")
    ends = [[point.low for point in told], [point.high for point in told]]
    axes.fill_between([str(point.day) for point in told], *ends, color="#4f6bed", alpha=0.2)
    axes.vlines([str(point.day) for point in told], *ends, color="#4f6bed", alpha=0.3)  # seen of one day, too
    axes.axhline(0, color="#9aa3af", linestyle="--", linewidth=1)
    axes.set_ylabel("difference")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.autofmt_xdate()
    return _png(figure)


_PRICES: LiteralString = """
    SELECT b.decided_at, price.key, price.value::float8
    FROM assignment_batches b CROSS JOIN LATERAL jsonb_each_text(b.prices) AS price
    WHERE b.submission_day BETWEEN %s AND %s AND b.strategy <> 'tiered' ORDER BY b.decided_at LIMIT 20000
"""


def _figure(rows: int = 0, height: float = 2.6) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, max(height, 0.3 * rows + 1.0)), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def _png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _plain(text: object) -> str:
    """Text that means itself in Markdown."""
    flat = " ".join(str(text).splitlines())
    return "".join(f"\\{each}" if each in "\\|[]<>`*_#" else each for each in flat)
