"""The hidden truth: how hard a task is, how good a model is at it, and what an attempt brings and consumes.

Pure and without HTTP. Everything follows from (seed, model, text of the prompt, attempt), so that the same
call gives the same result in any order and in any number of processes. The platform can know none of this
except by choosing, measuring and learning.

An attempt succeeds with P = sigmoid(1.4 (skill - difficulty)). Skill is drawn around the model's level and
differs by domain. Difficulty rises with the task's size, and both carry noise that the text does not show.
Tokens are lognormal around a median that grows with size, is off by a factor of the model's own, and has a
heavy tail: the mean is about a third above the median, as on real agent runs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from statistics import NormalDist
from struct import unpack

from cp_resources.simulator.catalogue import BUDGET, MID_PREMIUM, known_model

DOMAINS = ("infrastructure", "backend", "frontend", "ml", "testing", "documentation")

STEEPNESS = 1.4
SAME_MODEL_CORRELATION = 0.6
"""How much of an attempt's luck belongs to the pair of model and task, and so comes back on a retry."""

MEDIAN_INPUT = (6_500.0, 24_000.0, 62_000.0, 140_000.0)
MEDIAN_OUTPUT = (1_050.0, 3_100.0, 9_000.0, 25_000.0)
"""Median tokens of an agent's whole work at sizes 0 (simple), 1 (moderate), 2 (complex), 3 (highly so)."""

NAMED_DOMAIN_WEIGHT = 3
MALFORMED_EVIDENCE_SHARE = 0.02

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class TaskTruth:
    """What a prompt really asks for: domain, size (0 simple .. 3 highly complex) and difficulty (logits)."""

    key: str
    domain: str
    size: float
    difficulty: float


@dataclass(frozen=True, slots=True)
class ModelTruth:
    """What a model really is: skill by domain (logits), factors on input and output tokens and on latency."""

    skill: dict[str, float]
    input_factor: float
    output_factor: float
    latency_factor: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the work left behind, as the worker reports it."""

    tests_passed: int
    tests_failed: int
    bugs_introduced: int
    revisions_needed: int


@dataclass(frozen=True, slots=True)
class AttemptTruth:
    """What one attempt of one model at one task brings.

    `malformed` is the way in which the evidence is unreadable, or None. `input_tokens` and `output_tokens`
    are those of the simulated agent turns. `latency_factor` multiplies the simulator's median latency,
    around which `latency_noise` (standard normal) lies.
    """

    task: TaskTruth
    probability: float
    succeeded: bool
    evidence: Evidence
    malformed: str | None
    input_tokens: int
    output_tokens: int
    latency_factor: float
    latency_noise: float


class Draws:
    """Random numbers that depend on the seed and the key only, not on what else was drawn, or where."""

    def __init__(self, seed: int, *key: str) -> None:
        self._source = blake2b("\x1f".join((str(seed), *key)).encode("utf-8", "surrogatepass"))
        self._numbers: list[int] = []

    def uniform(self) -> float:
        """Return a number from the open interval (0, 1)."""
        if not self._numbers:
            block = self._source.digest()
            self._source.update(block)
            self._numbers = list(unpack(">8Q", block))
        return ((self._numbers.pop() >> 12) + 0.5) / 2**52

    def normal(self, spread: float = 1.0) -> float:
        """Return a normal deviate with mean 0 and standard deviation `spread`."""
        return spread * _NORMAL.inv_cdf(self.uniform())

    def below(self, limit: int) -> int:
        """Return a whole number from 0 to `limit` - 1."""
        return int(self.uniform() * limit)


def attempt_truth(seed: int, model: str, text: str, attempt: str) -> AttemptTruth:
    """Return what `attempt` of `model` at the task with prompt `text` brings."""
    task = task_truth(seed, text)
    profile = model_truth(seed, model)
    probability = success_probability(profile.skill[task.domain], task.difficulty)
    pair = Draws(seed, "pair", model, task.key)
    luck = Draws(seed, "attempt", model, task.key, attempt)
    z = (
        math.sqrt(SAME_MODEL_CORRELATION) * pair.normal()
        + math.sqrt(1 - SAME_MODEL_CORRELATION) * luck.normal()
    )
    succeeded = _NORMAL.cdf(z) < probability
    input_tokens, output_tokens = _tokens(seed, task, profile, pair, luck, succeeded)
    return AttemptTruth(
        task=task,
        probability=probability,
        succeeded=succeeded,
        evidence=_evidence(task, succeeded, probability, luck),
        malformed=_malformed(luck),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        latency_factor=profile.latency_factor * (output_tokens / MEDIAN_OUTPUT[1]) ** 0.25,
        latency_noise=luck.normal(),
    )


def success_probability(skill: float, difficulty: float) -> float:
    """Return the chance that a model of this skill does a task of this difficulty."""
    return 1 / (1 + math.exp(-STEEPNESS * (skill - difficulty)))


@lru_cache(maxsize=1024)
def model_truth(seed: int, model: str) -> ModelTruth:
    """Return the hidden profile of a model. A name nobody has heard of gets a level by hash."""
    draws = Draws(seed, "model", model)
    unheard_of = BUDGET + draws.uniform() * (MID_PREMIUM - BUDGET)
    level = known_model(model).level
    own = (unheard_of if level is None else level) + draws.normal(0.15)
    return ModelTruth(
        skill={domain: own + Draws(seed, "skill", model, domain).normal(0.45) for domain in DOMAINS},
        input_factor=math.exp(draws.normal(0.25)),
        output_factor=math.exp(draws.normal(0.25)),
        latency_factor=(0.55 + 0.4 * max(own, 0.0)) * math.exp(draws.normal(0.15)),
    )


@lru_cache(maxsize=4096)
def task_truth(seed: int, text: str) -> TaskTruth:
    """Return the hidden truth of the task that `text` describes. The same for every model."""
    key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    draws = Draws(seed, "task", key)
    domain = read_domain(text)
    size = min(max(read_size(text) + draws.normal(0.45), -0.5), 3.5)
    by_domain = Draws(seed, "domain", domain).normal(0.2)
    return TaskTruth(key, domain, size, -0.6 + 0.75 * size + by_domain + draws.normal(0.6))


_WORD = re.compile(r"[a-z0-9][a-z0-9-]*")
_DOMAIN_WORDS = {
    "infrastructure": (
        r"infra\w*|terraform|kubernetes|k8s|clusters?|helm|docker\w*|deploy\w*|nginx|prometheus|"
        r"grafana|autoscal\w*|dns|tls|certificates?|iam|vpc|ansible|runners?|backups?|failover|ingress|"
        r"nodes?|registry"
    ),
    "backend": (
        r"backend|apis?|endpoints?|databases?|sql|postgres\w*|queues?|services?|webhooks?|"
        r"transactions?|idempoten\w*|oauth|payments?|invoices?|ledgers?|kafka|redis|serializ\w*|"
        r"handlers?|consumers?|grpc"
    ),
    "frontend": (
        r"frontend|mobile|ui|ux|pages?|buttons?|css|react|components?|layouts?|modals?|screens?|accessib\w*|"
        r"forms?|browsers?|checkbox\w*|dropdowns?|safari|typescript|swift\w*|kotlin|android|ios"
    ),
    "ml": (
        r"ml|training|embeddings?|ranking|ranker|features|datasets?|inference|recall|classifiers?|"
        r"gpus?|notebooks?|pytorch|xgboost|retrain\w*|vectors?|fine-?tun\w*|ndcg|drift"
    ),
    "testing": (
        r"tests?|testing|flaky|coverage|e2e|fixtures?|mocks?|playwright|pytest|cypress|qa|assertions?"
    ),
    "documentation": (
        r"docs?|readme|documentation|guides?|changelog|tutorials?|typos?|docstrings?|runbooks?|"
        r"glossary|wording|how-?to|quickstart"
    ),
}
_DOMAIN = re.compile("|".join(f"(?P<{domain}>{words})" for domain, words in _DOMAIN_WORDS.items()))
_SIZE_WEIGHTS = (
    (re.compile(r"refactor|migrat|redesign|architect|rearchitect|breaking|rewrit"), 1.0),
    (re.compile(r"distributed|concurren|race|shard|multi-|zero-downtime|backfill|consisten|protocol"), 0.4),
    (re.compile(r"typo|rename|readme|wording|bump|tooltip|link|changelog|docstring|badge|copy"), -0.5),
)
_FILES = re.compile(r"\b(\d{1,4})\+?\s+files\b|\bfiles\W{1,4}(\d{1,4})\b")


def read_domain(text: str) -> str:
    """Return the domain whose words occur most often in `text`; backend when there are none.

    A domain that is named, as in a label, counts like several of its words.
    """
    words = _WORD.findall(text.lower())
    found = Counter(map(_domain_of, words))
    for domain in DOMAINS:
        found[domain] += NAMED_DOMAIN_WEIGHT * words.count(domain)
    return max(DOMAINS, key=lambda domain: (found[domain], domain == "backend"))


def read_size(text: str) -> float:
    """Return the size that the words of `text` show: about 0 for a one-line change, 3 for a rebuild."""
    lowered = text.lower()
    words = _WORD.findall(lowered)
    weights = dict(map(_size_weight, words))
    size = 0.8 + min(max(sum(weights.values()), -0.9), 1.8)
    size += min(max(0.25 * math.log(max(len(words), 1) / 60), -0.4), 0.5)
    if files := _FILES.search(lowered):
        size = (size + min(1.1 * math.log(max(int(files[1] or files[2]), 1)), 3.0)) / 2
    return size


@lru_cache(maxsize=65536)
def _domain_of(word: str) -> str | None:
    match = _DOMAIN.fullmatch(word)
    return match.lastgroup if match else None


@lru_cache(maxsize=65536)
def _size_weight(word: str) -> tuple[str, float]:
    """Return the stem by which `word` tells of the size of a task, and by how much; its forms count once."""
    for pattern, weight in _SIZE_WEIGHTS:
        if match := pattern.match(word):
            return match[0], weight
    return "", 0.0


def _tokens(
    seed: int, task: TaskTruth, profile: ModelTruth, pair: Draws, luck: Draws, succeeded: bool
) -> tuple[int, int]:
    """Input and output tokens of the whole work; shared luck of the task, the pair and the attempt."""
    shared = Draws(seed, "tokens", task.key).normal(0.45)
    turns = math.exp(shared + pair.normal(0.35) + luck.normal(0.35)) * (1.0 if succeeded else 1.25)
    talk = math.exp(luck.normal(0.3))
    return (
        round(_between(MEDIAN_INPUT, task.size) * profile.input_factor * turns),
        round(_between(MEDIAN_OUTPUT, task.size) * profile.output_factor * turns * talk),
    )


def _between(anchors: tuple[float, ...], size: float) -> float:
    """Interpolate `anchors`, the values at sizes 0, 1, 2, .., in the logarithm, going on beyond both ends."""
    i = min(max(math.floor(size), 0), len(anchors) - 2)
    return float(anchors[i] * (anchors[i + 1] / anchors[i]) ** (size - i))


def _evidence(task: TaskTruth, succeeded: bool, probability: float, luck: Draws) -> Evidence:
    """Good work passes its tests with few bugs and revisions; the more certain it was, the cleaner it is."""
    tests = 4 + luck.below(6 + round(6 * max(task.size, 0.0)))
    untidy = luck.uniform() * (1.3 - probability)
    if succeeded:
        failed = int(tests >= 10 and untidy > 0.5)
        revisions = min(int(untidy * 3.5), 2)
        return Evidence(
            tests - failed, failed, int(failed + revisions == 0 and luck.uniform() < 0.1), revisions
        )
    failed = max(1, round(tests * (0.2 + 0.6 * luck.uniform())))
    return Evidence(tests - failed, failed, 1 + luck.below(4), 1 + luck.below(4))


def _malformed(luck: Draws) -> str | None:
    if luck.uniform() >= MALFORMED_EVIDENCE_SHARE:
        return None
    return ("absent", "cut", "prose")[luck.below(3)]
