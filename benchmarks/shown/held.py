"""What is held of how many tried, and what a step sends."""

from __future__ import annotations

from shown import reading

_HELD = {
    "training": ("kills of a training (AdvCL + GSA on digits)", "kills", "survived"),
    "evaluation": ("kills of `advssl evaluate`", "kills", "survived"),
    "calls": ("wrong calls of the library", "tried", "passed"),
    "commands": ("mistakes on the command line", "tried", "passed"),
    "processes": ("comparisons of several processes with one", "tried", "passed"),
}


def reliability() -> str:
    """Of each kind how many were tried and how many held."""
    rows = reading.read("reliability")["rows"]
    lines = ["| what | tried | held | by |", "|---|--:|--:|---|"]
    for name, (what, tried, held) in _HELD.items():
        if name in rows:
            row = rows[name]
            where = f"`{row['command']}`, commit {row['commit'][:10]}, {row['machine']['cpu']}"
            lines.append(f"| {what} | {row[tried]:,} | {row[held]:,} | {where} |")
    return "\n".join(lines)


_MUTATED = {
    "core": "core, `attacks` to `views`",
    "evaluation": "`advssl.evaluation`",
    "integrations": "`advssl.integrations`",
    "cli": "`advssl.cli`, `advssl.options`",
    "papers": "`examples/papers`",
    "the rest": "`advssl.doctor`, `advssl.monitors`",
}


def mutants() -> str:
    """Of each part how many mutants were made and killed; what survived, and why."""
    record = reading.read("mutants")
    lines = ["| of | modules | made | killed | harmless | killed of the others |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for kind, title in _MUTATED.items():
        rows = [row for row in record["rows"].values() if row["kind"] == kind]
        made = sum(row["killed"] + len(row["survivors"]) for row in rows)
        if made:
            killed = sum(row["killed"] for row in rows)
            harmless = sum(bool(s["harmless"]) for row in rows for s in row["survivors"])
            share = f"{killed / max(made - harmless, 1):.0%}"
            lines.append(f"| {title} | {len(rows)} | {made} | {killed} | {harmless} | {share} |")
    where = f"Commit {record['commit'][:10]}, {record['machine']['cpu']}."
    return "\n".join([*lines, "", where])


def communication() -> str:
    """What a rank gives to collectives in a step: what is as large as the network, and the rest."""
    record = reading.read("communication")
    lines = [
        "| method | gradients | SAM, critic, buffers | of each image of the rank | collectives |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in record["rows"].values():
        (few, some), (more, most) = sorted((int(k), v) for k, v in row["by_images"].items())
        sent = {kind: (some["bytes"][kind], most["bytes"][kind]) for kind in some["bytes"]}
        each = {kind: (b - a) / (more - few) for kind, (a, b) in sent.items()}
        fixed = {kind: sent[kind][0] - few * each[kind] for kind in sent}
        gradients = fixed.pop("all-reduce of gradients")
        lines.append(
            f"| {row['title']} | {gradients / 1e6:.1f} MB | {sum(fixed.values()) / 1e6:.1f} MB | "
            f"{sum(each.values()) / 1e3:.1f} KB | {sum(most['calls'].values())} |"
        )
    commits = ", ".join(dict.fromkeys(row["commit"][:10] for row in record["rows"].values()))
    return "\n".join([*lines, "", f"Commit {commits}, {record['network']}."])
