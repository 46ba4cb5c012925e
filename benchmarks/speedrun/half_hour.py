"""Half an hour of two cores: a plain encoder's clusters, learned under attack.

    python benchmarks/speedrun/half_hour.py --data folder:data/cifar10

1. A teacher: SimCLR on small images, which are cheap: a step costs 6 F of them.
2. Spherical k-means on the teacher's features of the training images: pseudo-labels at several K.
3. A student from a random start: adversarial training of the clusters' cross-entropy (of AdvCL,
   Fan et al. 2021, Eq. 10, the second term alone), at 3 + 2 K F of K attack steps.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from course import Course, features, run  # before the harness, which it finds
from torch import Tensor, nn
from torch.nn.functional import interpolate

from advssl import ClusterFitHead, MultiViewNTXentLoss, Ramp
from advssl.integrations.timm import backbone
from harness.augment import Strong
from harness.heads import projection
from harness.method import Method, Terms
from harness.schedules import Recipe, WarmupCosine
from harness.settings import Settings

BACKBONE = "cifar:resnet18:16"
TEACHER = Recipe(6, 250, WarmupCosine(3e-3, 1, restarts=True), "adam", 1e-2)
STUDENT = replace(TEACHER, epochs=7)
SMALL, SMALL_EPOCHS = 24, 5  # pixels, of the student's epochs; whole images after them
CLUSTERS = (10, 50, 100, 500)
RADIUS = Ramp(1 / 255, 8 / 255, epochs=2)


class Teacher(Method):
    """SimCLR (Chen et al. 2020, Eq. 1) on crops of 24 pixels."""

    title = "teacher"

    def __init__(self, course: Course) -> None:
        super().__init__(backbone(BACKBONE), course.data, 32, Settings())
        self.head = projection(self.width, self.width, 128)
        self.crop = Strong(SMALL)
        self.contrast = MultiViewNTXentLoss(0.2)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        return {"contrastive": self.contrast(*self.embed((self.crop(images), self.crop(images))))}


class Student(Method):
    """The teacher's clusters, whatever the attack."""

    title = "student"

    def __init__(self, course: Course, clusters: ClusterFitHead, small_epochs: int) -> None:
        super().__init__(backbone(BACKBONE), course.data, 32, Settings(steps=2, relative_step=1.0))
        self.clusters = clusters
        self.small_epochs = small_epochs
        self.size = SMALL

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.size = SMALL if epoch < self.small_epochs else 32
        self.adversary.radius = RADIUS(epoch)
        self.adversary.step_size = RADIUS(epoch)

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        x = self.weak(images)
        if self.size < 32:
            x = interpolate(x, (self.size, self.size), mode="bilinear", antialias=True).clamp(0, 1)
        hard = self.attack(x, lambda view: self.clusters(self.encode(view), index))
        return {"clusters": self.clusters(self.encode(hard), index)}


def half_hour(course: Course) -> nn.Module:
    """A robust encoder, without labels."""
    return robust(course, TEACHER, STUDENT, SMALL_EPOCHS)


def robust(course: Course, first: Recipe, then: Recipe, small_epochs: int) -> nn.Module:
    """The encoder of a student that learns for so long from a teacher of so long."""
    torch.manual_seed(course.seed)
    teacher = Teacher(course)
    course.train("teacher", teacher, first)
    clusters = ClusterFitHead(teacher.width, CLUSTERS)
    clusters.load_state_dict(course.once("clusters", lambda: fitted(clusters, teacher, course)))
    torch.manual_seed(course.seed)
    student = Student(course, clusters, small_epochs)
    course.train("student", student, then)
    return student.encoder


def fitted(clusters: ClusterFitHead, teacher: Method, course: Course) -> dict[str, Tensor]:
    clusters.fit(features(teacher, course.data.train), seed=course.seed)
    return clusters.state_dict()


if __name__ == "__main__":
    run(half_hour, "half_hour", 30, BACKBONE, sys.argv[1:])
