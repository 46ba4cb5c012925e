"""View: what a page shows of a report, in words and without markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from advssl.evaluation.checks import Check
from advssl.evaluation.plain_json import Struct
from advssl.evaluation.records import WORST, Measurement, paired
from advssl.evaluation.report import findings
from advssl.evaluation.report.content import (
    Report,
    Section,
    by_column,
    checks_of,
    failed,
    known,
)
from advssl.evaluation.report.words import (
    cell,
    counted,
    ends,
    interval,
    percent,
    text,
    threat,
)

MARKS = {"pass": "✓", "fail": "✗", "not run": "–"}
SETTINGS = ("protocol", "measurement", "accuracy", "n", "seed", "settings")
CHECKS = ("verdict", "check", "protocol", "evidence")
_PROTOCOLS = {
    "slf": "standard linear finetuning",
    "alf": "adversarial linear finetuning",
    "fsf": "full standard finetuning",
    "aff": "adversarial full finetuning",
    "own": "the classifier's own head",
}
_PROBES = {
    "slf": "linear probe",
    "alf": "adversarial linear probe",
    "fsf": "full finetuning",
    "aff": "adversarial full finetuning",
    "own": "own head",
}
_STANDARD = "AutoAttack standard"  # as its settings call the field's standard set
# What a number is not to be quoted without, and whether a measurement is of it.
_EXPECTED: Mapping[str, Callable[[Measurement], bool]] = {
    "PGD": lambda m: m.settings.get("attack") == "PGD" or m.name.startswith("PGD"),
    "multi-targeted PGD": lambda m: m.name.startswith("multi-targeted PGD"),
    "AutoAttack": lambda m: (
        m.settings.get("attack") == _STANDARD or m.name.startswith("AA standard")
    ),
}
# What None means where all of a model and of its data is known.
_WITHOUT = {"mean": "none before the network", "image_size": "the images' own"}
_WIDE = 0.05  # of an interval's half: beyond it, images are few


@dataclass(frozen=True)
class Share:
    """An accuracy as it is shown.

    Attributes:
        value: "52.5 %".
        interval: "[37.5, 67.1]".
        n: "n = 12" where it is not the row's.
        few: "± 14.8 points" where the images are few.
    """

    value: str
    interval: str
    n: str
    few: str

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{self.value} {self.interval}", self.n)))


def _share(m: Measurement, n: int) -> Share:
    low, high = ends(m)
    half = (high - low) / 2
    return Share(
        value=percent(m.value),
        interval=interval(m),
        n="" if m.n == n else f"n = {m.n}",
        few=f"± {100 * half:.1f} points" if half > _WIDE else "",
    )


@dataclass(frozen=True)
class Headline:
    """The number of a section that counts: its worst case, or else that nothing was attacked.

    Attributes:
        share: of images that stand.
        sentence: what it is of, behind it: "of 200 images stand in the worst case of 3 attacks,
            95 % interval [8.6, 17.8]: ℓ∞ 8/255, linear probe (advcl), last epoch, seed 0;
            clean 40.0 %. Not run: AutoAttack."
        state: "fail" if a check failed, "none" if no more stands than guessing would leave,
            "not run" without an attack, else "stands".
        said: the sentence that goes with the state, if there is one.
    """

    share: Share
    sentence: str
    state: str
    said: str


@dataclass(frozen=True)
class Row:
    """A section's measurements by column; None is what was not measured."""

    section: Section
    name: str
    below: tuple[str, ...]
    shares: tuple[Share | None, ...]
    n: str
    doubtful: bool


@dataclass(frozen=True)
class View:
    """All that a page shows of ``report``."""

    report: Report

    @cached_property
    def summary(self) -> str:
        """What was evaluated, in one line."""
        model, data = known(self.report.model), known(self.report.data)
        named = [model[key] for key in ("backbone", "checkpoint") if model.get(key)]
        each = (k if isinstance(v, Mapping) else v for k, v in model.items())
        whose = ", ".join(map(text, named or each))
        spec = data.get("name") or data.get("spec")
        where = f"on {text(spec)}" if spec else ""
        sizes = sorted({s.clean.n for s in self.report.sections})
        images = f"{' or '.join(map(str, sizes))} test image{'' if sizes == [1] else 's'}"
        measured = counted(sum(len(s.measurements) for s in self.report.sections), "measurement")
        whole = " ".join(filter(None, (whose, where)))
        return " · ".join(filter(None, (whole, images, measured)))

    @cached_property
    def headlines(self) -> list[Headline]:
        """One per section of the last epoch."""
        return [_headline(s, self.chance) for s in self.report.sections if s.selected is None]

    @cached_property
    def chance(self) -> float | None:
        """What guessing gets."""
        classes = known(self.report.data).get("classes")
        count = classes if isinstance(classes, int) else len(classes or ())
        return 1 / count if count else None

    @cached_property
    def columns(self) -> list[str]:
        """Clean first, worst case last, attacks between them as they first appear."""
        names = dict.fromkeys(n for s in self.report.sections for n in by_column(s))
        ended = [WORST] if WORST in names else []
        return [*(name for name in names if name not in ended), *ended]

    @cached_property
    def rows(self) -> list[Row]:
        """Of the table of all accuracies."""
        return [_row(section, self.columns) for section in self.report.sections]

    @staticmethod
    def cells(row: Row) -> list[str]:
        """A row's shares as text."""
        return [str(share or "–") for share in row.shares]

    @cached_property
    def tables(self) -> list[tuple[str, list[list[str]], set[int], str]]:
        """What is said beside: title, header and rows as text, columns of numbers, and note."""
        return [
            (
                table.title,
                [[*table.header], *([cell(value) for value in row] for row in table.rows)],
                {i for row in table.rows for i, v in enumerate(row) if not isinstance(v, str)},
                table.note,
            )
            for table in (*findings.tables(self.report), *self.report.tables)
        ]

    @cached_property
    def doubts(self) -> list[tuple[Section, Check]]:
        """The failed checks."""
        return failed(self.report)

    @cached_property
    def verdict(self) -> tuple[str, str]:
        """Fail, none, pass or not run, for all checks together, and the sentences that say so."""
        state, sentence = self._checked()
        weak = [headline.said for headline in self.headlines if headline.state == "none"]
        if state != "fail" and weak:
            whole = len(self.headlines)
            some = f"{len(weak)} of {whole}: " if len(weak) < whole else ""
            return "none", f"{some}{weak[0]} {sentence}"
        last = [s for s in self.report.sections if s.selected is None]
        if state == "pass" and not all(s.under_threat() for s in last):
            return "not run", f"{sentence} No attack was run: nothing here is about robustness."
        if state == "pass" and any("AutoAttack" in _not_run(s) for s in last):
            bound = "AutoAttack was not run: the worst case is an upper bound."
            return "not run", f"{sentence} {bound}"
        return state, sentence

    def _checked(self) -> tuple[str, str]:
        count = Counter(check.verdict for _, check in self.checks)
        total = sum(count.values())
        skipped = f"; {count['not run']} not run" if count["not run"] else ""
        if not total:
            return "not run", "No checks were run: nothing here speaks for these numbers."
        if count["fail"]:
            return "fail", f"{count['fail']} of {counted(total, 'check')} failed{skipped}."
        if not count["pass"]:
            return "not run", (
                f"None of {counted(total, 'check')} was run: nothing here speaks for these numbers."
            )
        return "pass", f"No reason to doubt found in {counted(count['pass'], 'check')}{skipped}."

    @cached_property
    def notes(self) -> list[str]:
        """What the table's numbers are."""
        notes = [
            "Share of test images classified right, with its 95 % Wilson interval, which covers "
            "the choice of images and not that of the seed."
        ]
        sections = [s for s in self.report.sections if s.worst is not None]
        if sections:
            apart: dict[str, dict[str, None]] = {}
            for section, m in ((s, m) for s in sections for m in s.measurements[1:]):
                if not paired(m, section.clean):
                    apart.setdefault("on other images", {})[m.name] = None
                elif m.threat != section.threat:
                    apart.setdefault("of another threat model", {})[m.name] = None
            others = "".join(
                f"; {', '.join(names)}: {why}, not in it" for why, names in apart.items()
            )
            worst = f"{WORST.capitalize()}: images that stay right under every one of the attacks"
            notes.append(f"{worst}{others}.")
        if any(headline.share.few for headline in self.headlines):
            notes.append(
                "Few images: the interval is wider than ±5 points; measure on more before you "
                "compare."
            )
        return notes

    @cached_property
    def checks(self) -> list[tuple[Section, Check]]:
        """All that was checked."""
        return [(s, c) for s in self.report.sections for c in checks_of(s)]

    @cached_property
    def settings(self) -> list[tuple[str, ...]]:
        """One row per measurement, of :data:`SETTINGS`."""
        return [
            (
                s.label,
                m.name,
                f"{percent(m.value)} {interval(m)}",
                str(m.n),
                str(m.seed),
                text(m.settings),
            )
            for s in self.report.sections
            for m in s.measurements
        ]

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """All that is needed to run it again, by name."""
        measurements = [m for s in self.report.sections for m in s.measurements]
        facts = [("command", self.report.command)]
        for name in ("model", "data"):
            held = known(getattr(self.report, name))
            facts += [(f"{name}: {k}", text(v)) for k, v in held.items() if v not in (None, {})]
            if isinstance(getattr(self.report, name), Struct):
                facts += [
                    (f"{name}: {k}", v) for k, v in _WITHOUT.items() if held.get(k, v) is None
                ]
        for section in self.report.sections:
            if section.probe and section.selected is None:
                settings = {"seed": section.probe.seed, **section.probe.settings}
                facts.append((f"probe: {section.label}", text(settings)))
        facts += [("images, fingerprint", v) for v in _distinct(m.dataset for m in measurements)]
        facts += [("commit", v) for v in _distinct(m.commit or "unknown" for m in measurements)]
        facts += _joined("machine", [m.machine for m in measurements])
        told = {name for m in measurements for name in m.machine}
        versions = [m.versions or {} for m in measurements]
        return facts + [
            (f"version: {name}", value) for name, value in _joined("", versions) if name not in told
        ]


def _headline(section: Section, chance: float | None) -> Headline:
    clean, worst, attacks = section.clean, section.worst, section.under_threat()
    shown = worst or clean
    what = f"stand in the {WORST} of {counted(len(attacks), 'attack')}"
    doubtful = any(check.verdict == "fail" for check in checks_of(section))
    said = ""
    if worst is None:
        what, state = "are classified right without an attack; no attack was run", "not run"
    elif doubtful:
        state, said = "fail", "Doubtful: a check failed."
    elif worst.value <= (guessed := chance or 0):
        # Few images leave room for more than they show.
        few = "" if ends(worst)[1] <= guessed else f", as far as {counted(worst.n, 'image')} tell"
        state = "none"
        said = f"Not robust{few}: no more images stand than guessing would leave."
    else:
        state = "stands"
    named = (_threat(section), _probe(section), _epoch(section), f"seed {clean.seed}")
    told = f"of {counted(clean.n, 'image')} {what}, 95 % interval {interval(shown)}: "
    told += ", ".join(filter(None, named))
    if worst is not None:
        told += f"; clean {percent(clean.value)}. "
        told += f"Not run: {', '.join(missing)}." if (missing := _not_run(section)) else ""
    return Headline(
        share=_share(shown, clean.n),
        sentence=told.rstrip(),
        state=state,
        said=said,
    )


def _threat(section: Section) -> str:
    return threat(section.threat) if section.threat else ""


def _probe(section: Section) -> str:
    """ "linear probe (advcl)", and before it the encoder, after it the branch, if there are any."""
    named = _PROBES.get(section.protocol, section.protocol)
    preset = section.probe.preset if section.probe else ""
    named += f" ({preset})" if preset not in ("", section.protocol) else ""
    branch = f"{section.branch} branch" if section.branch is not None else ""
    return ", ".join(filter(None, (section.encoder, named, branch)))


def _epoch(section: Section) -> str:
    return "" if section.protocol == "own" else section.selected or "last epoch"


def _not_run(section: Section) -> list[str]:
    """Attacks of the field's standard set that were run on no images under the threat model."""
    attacks = [m for m in section.measurements[1:] if m.threat in (None, section.threat)]
    return [name for name, is_one in _EXPECTED.items() if not any(map(is_one, attacks))]


def _row(section: Section, columns: Sequence[str]) -> Row:
    cells = by_column(section)
    n = section.clean.n
    shares = tuple(_share(cells[name], n) if name in cells else None for name in columns)
    if section.selected is not None:
        return Row(section, section.label, (), shares, str(n), doubtful=False)
    preset = section.probe.preset if section.probe else ""
    branch = f"{section.branch} branch" if section.branch is not None else ""
    below = (
        _PROTOCOLS.get(section.protocol, ""),
        f"{preset} settings" if preset not in ("", section.protocol) else "",
        branch,
    )
    return Row(
        section=section,
        name=": ".join(filter(None, (section.encoder, section.protocol))),
        below=tuple(filter(None, below)),
        shares=shares,
        n=str(n),
        doubtful=any(check.verdict == "fail" for check in checks_of(section)),
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _joined(name: str, held: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Each key with all values that it has."""
    return [
        (
            f"{name}: {key}" if name else key,
            " or ".join(_distinct(text(one[key]) for one in held if key in one)),
        )
        for key in dict.fromkeys(key for one in held for key in one)
    ]
