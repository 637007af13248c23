"""How many stages each network has: ``python -m trainables.backbones.stage_counts`` prints the table.

In a file, because finding it out takes a look at the network: a minute for all of them.
"""

from __future__ import annotations

NUM_STAGES: dict[str, int] = {}


def _main() -> None:
    from trainables.backbones.families import backbone_names
    from trainables.backbones.published import published
    from tuner.preparing import build_cuts

    for name in backbone_names():
        stated = published(name)
        cuts = build_cuts(name, 1000, stated.input_px if stated is not None else 224)
        print(f'    "{name}": {cuts.num_stages},')


if __name__ == "__main__":
    _main()
