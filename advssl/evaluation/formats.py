"""Formats: where checkpoints keep their encoder, and how their tensors are called.

A new format is an entry of :data:`FORMATS`, other names of one network one of :data:`NAMINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "Mapping[str, Tensor]"
Renaming: TypeAlias = tuple[tuple[str, str], ...]  # patterns and what stands in their place

# How a branch stands between the name of a BatchNorm and those of its tensors.
_BY_NAME = r"\.(?P<branch>[A-Za-z]\w*)"  # bn1.clean.weight, as branch_batchnorm spells it
_BN_LIST = r"\.bn_list\.(?P<branch>\d+)"  # bn1.bn_list.0.weight
_BY_NUMBER = r"\.(?P<branch>\d+)"  # bn1.0.weight
_NORM_TENSOR = r"\.(?P<tensor>weight|bias|running_mean|running_var|num_batches_tracked)"


@dataclass(frozen=True)
class Format:
    """Where one kind of checkpoint keeps its encoder, and how it spells BatchNorm branches.

    Args:
        name: what ``format=`` is.
        places: keys of the file under which the state dict may lie; "" is the file itself. Others
            are looked at where none of the usual ones fits.
        prefixes: what may stand before the encoder's names. Those of wrappers (``module.`` of
            DataParallel, ``_orig_mod.`` of torch.compile) may stand anywhere.
        spelling: pattern of a branch between a BatchNorm's name and its tensors'.
        branches: their names, where the file numbers them.
        ranked: the first place and prefix that fit are meant. Else two that fit are refused.
        normalised: by what the code that writes it normalises images unless told otherwise, where
            that is known and the file does not say it.
    """

    name: str
    places: tuple[str, ...]
    prefixes: tuple[str, ...]
    spelling: str = _BY_NAME
    branches: tuple[str, ...] = ()
    ranked: bool = False
    normalised: str = ""

    @cached_property
    def branched(self) -> re.Pattern[str]:
        """What the name of a tensor of a BatchNorm branch looks like."""
        return re.compile(rf"(?P<norm>.+?){self.spelling}{_NORM_TENSOR}")


# The layouts of acl, dynacl, advcl and gsa are read off the authors' published training code, those
# of the others off their libraries; no published file could be fetched to compare. AdvCL's third
# set, and that ACL's index 1 is the adversarial one, is the order of their lists of names.
_ACL = ("normal", "pgd", "pgd_ce")
_IMAGENET = "ImageNet's statistics (--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)"
_CIFAR = "CIFAR-10's (--mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616)"
_SOLO = f"solo-learn by {_IMAGENET}, on CIFAR-10 by {_CIFAR}"
_LIGHTLY = f"lightly by {_IMAGENET} on all data, {_SOLO}"  # both call it the backbone
FORMATS = (
    # DeepSpeed's place is "module".
    Format(
        "plain", ("", "state_dict", "model", "encoder", "model_state_dict", "module", "net"), ("",)
    ),
    # lightly's examples: self.backbone; its DINO evaluates the teacher.
    Format(
        "lightly",
        ("state_dict", ""),
        ("backbone.", "teacher_backbone."),
        ranked=True,
        normalised=_LIGHTLY,
    ),
    # v1 and v2, then v3. The query encoder is evaluated, not the momentum encoder.
    Format(
        "moco",
        ("state_dict", ""),
        ("encoder_q.", "base_encoder."),
        ranked=True,
        normalised=f"MoCo's code by {_IMAGENET}",
    ),
    # DINO evaluates the teacher.
    Format(
        "dino",
        ("teacher", "student"),
        ("backbone.",),
        ranked=True,
        normalised=f"DINO's code by {_IMAGENET}",
    ),
    # Earlier versions called it the encoder.
    Format("solo", ("state_dict", ""), ("backbone.", "encoder."), ranked=True, normalised=_SOLO),
    Format("acl", ("state_dict", ""), ("",), _BN_LIST, _ACL),
    # model.pt and model_encoder_k_<epoch>.pt hold both encoders, of which the momentum encoder
    # is evaluated; model_encoder_k.pt holds that one alone.
    Format("dynacl", ("state_dict", ""), ("encoder_k.", ""), _BN_LIST, _ACL, ranked=True),
    Format("advcl", ("model", "state_dict"), ("",), _BN_LIST, _ACL),
    # Inside a module that normalises for it or trains it: RobustBench's and many a Lightning
    # module's model, nn.Sequential(Normalize(), network).
    Format(
        "wrapped",
        ("", "state_dict", "model_state_dict", "model", "net"),
        ("model.", "net.", "network.", "1."),
        ranked=True,
    ),
    Format("gsa", ("model",), ("encoder.",), _BY_NUMBER, ("clean", "adversarial")),
)

# Networks whose names differ, and what makes them torchvision's and timm's: mostly the shortcut.
_BLOCK = r"^(layer\d+\.\d+)\."
_SHORTCUT: Renaming = ((_BLOCK + r"shortcut\.([01])\.", r"\1.downsample.\2."),)


def _wide(blocks: int) -> Renaming:
    """TRADES' names of a WideResNet with so many blocks in a stage, RobustBench's too, to ours."""
    stages = (
        (rf"^block{stage + 1}\.layer\.{block}\.", f"blocks.{stage * blocks + block}.")
        for stage in range(3)
        for block in range(blocks)
    )
    inside = (
        (r"^(blocks\.\d+)\.bn([12])\.", r"\1.norm\2."),
        (r"^(blocks\.\d+)\.convShortcut\.", r"\1.shortcut."),
    )
    return (*stages, *inside, (r"^conv1\.", "stem."), (r"^bn1\.", "norm."))


def _efficient(*depths: int) -> Renaming:
    """efficientnet_pytorch's names, of so many blocks in each stage, to timm's."""
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    blocks = ((rf"^_blocks\.{n}\.", f"blocks.{s}.{b}.") for n, (s, b) in enumerate(places))
    # Blocks of the first stage do not expand, so their convolutions are counted from another one.
    first = {"_bn1": "bn1", "_bn2": "bn2", "_project_conv": "conv_pw"}
    expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    expanding |= {"_project_conv": "conv_pwl"}
    any_stage = {"_depthwise_conv": "conv_dw", "_se_reduce": "se.conv_reduce"}
    any_stage |= {"_se_expand": "se.conv_expand"}
    around = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    inside = (
        (rf"^(blocks\.{stage}\.\d+)\.{old}\.", rf"\1.{new}.")
        for stage, words in (("0", first), (r"\d+", expanding | any_stage))
        for old, new in words.items()
    )
    outside = ((rf"^{old}\.", f"{new}.") for old, new in {**around, "_fc": "classifier"}.items())
    return (*blocks, *inside, *outside)


NAMINGS: Mapping[str, Renaming] = MappingProxyType(
    {
        "torchvision, timm": (),
        "shortcut.0 (AdvCL's finetuned, lightly's ResNetGenerator)": _SHORTCUT,
        "downsample.conv (ACL, DynACL, AdvCL)": (
            (_BLOCK + r"downsample\.conv\.", r"\1.downsample.0."),
            (_BLOCK + r"downsample\.bn\.", r"\1.downsample.1."),
        ),
        "nn.Sequential of torchvision's children (lightly's examples)": (
            (r"^0\.", "conv1."),
            (r"^1\.", "bn1."),
            *((rf"^{stage + 3}\.(?=\d)", f"layer{stage}.") for stage in (1, 2, 3, 4)),
        ),
        "nn.Sequential of ResNetGenerator's children (lightly's examples)": (
            (r"^0\.", "conv1."),
            (r"^1\.", "bn1."),
            *((rf"^{stage + 1}\.(?=\d)", f"layer{stage}.") for stage in (1, 2, 3, 4)),
            *_SHORTCUT,
        ),
        **{
            f"WideResNet-{6 * blocks + 4} of TRADES and RobustBench": _wide(blocks)
            for blocks in (4, 5, 11)
        },
        "EfficientNet-B0 and -Lite0 of efficientnet_pytorch": _efficient(1, 2, 2, 3, 3, 4, 1),
    }
)

# Two words for one branch, so that bn_branch="adversarial" means the same with every format.
_SAME_BRANCH = {"normal": "clean", "pgd": "adversarial"}

# What wrappers put into names: DataParallel, DDP and averaged models; Opacus; torch.compile;
# activation checkpointing; FSDP and its forerunner; Fabric.
_WRAPPER = (
    r"(?:module|_module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_fpw_module|"
    r"_forward_module|_original_module|_dmp_wrapped_module)\."
)
WRAPPERS = f"(?:{_WRAPPER})*"
OUT_OF_WRAPPERS = (rf"(?<![^.]){_WRAPPER}", "")
# Of weight_norm, which has two spellings.
_WEIGHT_NORM: Renaming = (
    (r"parametrizations\.weight\.original0$", "weight_g"),
    (r"parametrizations\.weight\.original1$", "weight_v"),
)
# And what is known to be no part of an encoder.
_HEAD = re.compile(
    r"(?:\w+_)?(?:fc|heads?|linear|classifiers?|logits|project(?:ion|or)s?|proj|predict(?:ion|or)s?|"
    r"prototypes?|queue|criterion|memory_bank|discriminator|critic|n_averaged)(?:_\w+|\d+)?"
    r"|sub_block1"  # TRADES' WideResNet has it, and never runs it
)


def renamed(
    names: Mapping[str, tuple[str, str | None]], renaming: Renaming
) -> dict[str, tuple[str, str | None]] | None:
    """Each name and its branch, the name in one spelling; None if two become one.

    Wrappers' names stay where they tell two tensors apart.
    """
    for spelling in ((OUT_OF_WRAPPERS, *_WEIGHT_NORM, *renaming), renaming):
        renamed = {key: (canonical(n, spelling), branch) for key, (n, branch) in names.items()}
        if len(set(renamed.values())) == len(renamed):
            return renamed
    return None


@lru_cache(maxsize=1 << 14)  # each name is asked for again behind each format's prefixes
def canonical(name: str, renaming: Renaming) -> str:
    """``name`` as torchvision has it if ``renaming`` is its naming."""
    for pattern, replacement in renaming:
        name = re.sub(pattern, replacement, name)
    return name


def among(labels: Sequence[str], branch: str | None) -> str | None:
    """The label that means ``branch``."""
    meant = _SAME_BRANCH.get(branch or "", branch)
    return next((label for label in labels if _SAME_BRANCH.get(label, label) == meant), None)


def is_head(name: str) -> bool:
    return _HEAD.fullmatch(name.partition(".")[0]) is not None
