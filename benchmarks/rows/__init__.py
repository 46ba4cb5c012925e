"""The rows of the speed table, in its order: how each is measured, by name."""

from collections.abc import Callable
from functools import partial

from rows import attacks, clusters, growth, losses, steps, views
from rows.measuring import Bench, Row

ROWS: dict[str, Callable[[Bench], Row]] = {
    "pgd5": partial(attacks.floor, steps=5),
    "pgd10": partial(attacks.floor, steps=10),
    "signs": attacks.signs,
    "cross_entropy5": partial(attacks.cross_entropy, steps=5),
    "cross_entropy10": partial(attacks.cross_entropy, steps=10),
    "advcl": steps.advcl,
    "gsa_rsl": steps.gsa_rsl,
    "sam": steps.sam,
    "high_frequency32": partial(views.high_frequency, which=0),
    "high_frequency224": partial(views.high_frequency, which=1),
    "nt_xent2": partial(losses.nt_xent, count=2, which=0),
    "nt_xent4": partial(losses.nt_xent, count=4, which=0),
    "nt_xent2_large": partial(losses.nt_xent, count=2, which=1),
    "nt_xent4_large": partial(losses.nt_xent, count=4, which=1),
    "nt_xent_blocked": losses.blocked_nt_xent,
    "local_selection": partial(losses.local_selection, which=0),
    "local_selection_large": partial(losses.local_selection, which=1),
    "k_means10": partial(clusters.k_means, k=10),
    "k_means100": partial(clusters.k_means, k=100),
    "k_means500": partial(clusters.k_means, k=500),
    "augmentation": views.augmentation,
    "import": growth.imported,
    "growth_attack": growth.attack_steps,
    "growth_nt_xent_batch": growth.nt_xent_batch,
    "growth_nt_xent_views": growth.nt_xent_views,
    "growth_nt_xent_blocks": growth.nt_xent_blocks,
    "growth_k_means": growth.k_means_clusters,
    "throughput": steps.throughput,
}
