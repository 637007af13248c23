"""Which pictures a sweep or a pretraining learns from, as the section ``data`` of a spec says it.

In: a mapping. Out: `DataSpec`, with every default filled in. Whether the pictures are there is for those who open them.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from search_spaces.contradictions import split_contradiction
from search_spaces.ranges import ClassNames, Count, Float, Int, SpecPart
from trainables.config import FitOrAuto, SplitConfig
from trainables.wording import shorten

MOST_FOLDS = 20
"""Of cross-validation: all are trained side by side, and what more of them tell is little."""


class DataSpec(SpecPart):
    """Which pictures, and how they are dealt to the sides."""

    source: str = Field(
        min_length=1,
        description="Where pictures are: 'folder:PATH' or 'folder:URI' (class folders, or train/val[/test] above "
        "them), 'csv:PATH' (columns file and label, maybe split and group), 'parquet:URI' (image and label, maybe "
        "split and group), 'torchvision:NAME[:FOLDER]' (one of its classification sets), or 'digits'.",
    )
    labels: Literal["single", "multi"] = Field(
        "single",
        description="'single': each picture shows one class. 'multi': any number of them, or none; for csv: and "
        "parquet: sources.",
    )
    label_separator: str = Field(
        "|", min_length=1, description="Between the labels of one picture, where they are text and `labels` is multi."
    )
    exclude_classes: ClassNames = Field((), description="Classes to leave out, by name.")
    max_per_class: Count | None = Field(
        None,
        description="Pictures of each class, for trying out: the same ones each time, of each side its share; none: "
        "all.",
    )
    group_pattern: str | None = Field(
        None,
        description="Regular expression on the file names, or with a / in it on the folders too. Pictures in which its "
        "parenthesis (or all of it) finds the same text show one part, patient or scene, and stay on one side of the "
        "split; none: as the source says.",
    )
    max_bad_fraction: Float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the files that may be set aside because they are damaged, no pictures, or stand under "
        "two classes; with more the sweep is refused.",
    )
    image_size_px: Int = Field(224, ge=8, le=1024, description="Side of the square that the network sees, in pixels.")
    fit: FitOrAuto = Field(
        "auto",
        description="How a picture that is no square is brought to one: 'crop' its middle, which loses its ends; "
        "'squash' all of it; 'pad' all of it, its shape kept; 'auto' one of the latter two by the pictures' shapes, "
        "said and written into the sweep's spec.",
    )
    split: SplitConfig = Field(SplitConfig(), description="Shares of the train, validation and test sides.")
    folds: Int = Field(
        0,
        ge=0,
        le=MOST_FOLDS,
        description="Cross-validation for a few hundred pictures: all that are not tested are dealt to so many folds, "
        "classes or labels evenly, groups whole; every trial is trained once for each, judged on that fold, and scored "
        "by the mean. 0: none, one validation side.",
    )

    @field_validator("group_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{shorten(pattern)} is no regular expression ({error}); write \\ before . ( [ * + ?"
            ) from error
        return pattern

    @field_validator("folds")
    @classmethod
    def _are_folds(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("1 fold leaves nothing to learn from; give 0 for no cross-validation, or at least 2")
        return folds

    @field_validator("split")
    @classmethod
    def _split_is_whole(cls, split: SplitConfig) -> SplitConfig:
        if problem := split_contradiction(split):
            raise ValueError(problem)
        return split
