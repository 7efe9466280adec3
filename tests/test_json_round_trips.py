"""What is written as JSON, or as Parquet, is read back equal: configurations, selections of episodes, records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported_runs import read_rollouts, write_rollouts

from par_agent.data.render_spec import RenderSpec
from par_agent.data.selection import format_numbers, parse_numbers
from par_agent.evaluation.records import FIELDS
from par_agent.modeling.config import (
    ActionConfig,
    DiffusionConfig,
    EncoderConfig,
    GenerationConfig,
    NOVAConfig,
    PARConfig,
)
from par_agent.policy.transforms import Transforms
from par_agent.utils.json_fields import build

WORDS = st.text(min_size=1, max_size=12)
FINITE = st.floats(-1e6, 1e6)
ABOVE_0 = st.floats(1e-6, 1e6)


def sizes(most: int = 64) -> st.SearchStrategy[int]:
    return st.integers(1, most)


def tuples(values: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, min_size=least, max_size=3).map(tuple)


ENCODERS = st.builds(
    lambda heads, head_dim, **others: EncoderConfig(width=heads * head_dim, heads=heads, **others),
    heads=sizes(),
    head_dim=sizes(),
    depth=sizes(),
    mlp_ratio=sizes(),
    branch_start=ABOVE_0,
)
DIFFUSION = st.builds(
    DiffusionConfig,
    kind=st.sampled_from(["flow", "ddpm"]),
    train_steps=st.integers(100, 1000),
    shift=ABOVE_0,
    steps_offset=st.integers(0, 1),
)
NOVA = st.builds(
    NOVAConfig,
    latent_channels=sizes(),
    latent_size=st.tuples(*[st.sampled_from([4, 8, 12])] * 2),
    video_patch=st.sampled_from([1, 2, 4]),
    image_patch=st.sampled_from([1, 2, 4]),
    video_encoder=ENCODERS,
    image_encoder=ENCODERS,
    **dict.fromkeys(("decoder_depth", "decoder_width", "text_dim", "text_length"), sizes()),
    video_base_size=st.tuples(sizes(), sizes(), sizes()),
    image_base_size=st.tuples(sizes(), sizes()),
    **dict.fromkeys(("absolute_space", "absolute_time", "rotary", "motion", "bos_slot"), st.booleans()),
    mixer_rank=st.none() | st.integers(-1, 64),
    diffusion=DIFFUSION,
)
ACTIONS = st.builds(
    ActionConfig,
    action_size=sizes(),
    proprioception_size=st.integers(0, 64),
    chunk_length=sizes(8),
    foresight=st.sets(st.integers(8, 64), max_size=4).map(lambda steps: tuple(sorted(steps))),
    tokenizer_widths=tuples(sizes()),
    conditions=st.just("actions"),
    rotary_base=ABOVE_0,
    diffusion=DIFFUSION,
)
CONFIGS = st.builds(
    PARConfig,
    name=st.text(max_size=12),
    nova=NOVA,
    action=ACTIONS,
    max_context=sizes(),
    noise_samples=sizes(),
    detokenizers=st.sampled_from(["diffusion", "regression"]),
    imagination=st.booleans(),
    generation=st.builds(
        GenerationConfig, mask_steps=sizes(), diffusion_steps=sizes(), guidance=FINITE, temperature=st.floats(0, 1)
    ),
)
RENDER_SPECS = st.builds(
    RenderSpec,
    env_id=WORDS,
    source=WORDS,
    num_episodes=sizes(),
    instruction=st.text() | tuples(st.text(), least=1),
    crop=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9), sizes(), sizes()),
    size=st.none() | st.tuples(sizes(), sizes()),
    stride=sizes(),
    recorded=st.booleans(),
    source_episodes=st.none() | WORDS,
)


@st.composite
def transforms(draw: st.DrawFn) -> Transforms:
    actions, positions, targets = (draw(sizes(4)) for _ in range(3))

    def vector(values: st.SearchStrategy[float], size: int) -> tuple[float, ...]:
        return tuple(draw(st.lists(values, min_size=size, max_size=size)))

    return Transforms(
        camera=draw(WORDS),
        image_size=draw(st.none() | st.tuples(sizes(), sizes())),
        crop=None,
        size=draw(st.none() | st.tuples(sizes(), sizes())),
        relative=tuple(draw(st.booleans()) and joint < positions for joint in range(actions)),
        proprioception_mean=vector(FINITE, positions),
        proprioception_std=vector(ABOVE_0, positions),
        action_mean=tuple(vector(FINITE, actions) for _ in range(targets)),
        action_std=tuple(vector(ABOVE_0, actions) for _ in range(targets)),
    )


@given(transforms())
def test_transforms_are_read_back_from_json_equal(original: Transforms) -> None:
    content = json.loads(json.dumps(dataclasses.asdict(original), allow_nan=False))
    assert build(Transforms, content, added=()) == original


@given(CONFIGS | RENDER_SPECS)
def test_a_configuration_is_read_back_from_json_equal(config: Any) -> None:
    content = json.loads(json.dumps(config.to_json(), allow_nan=False))
    again = type(config).from_json(content, *(["here"] if isinstance(config, RenderSpec) else []))
    assert again == config
    assert dataclasses.asdict(again) == dataclasses.asdict(config)


@given(st.lists(st.integers(0, 9_999_999), min_size=1, unique=True))
def test_numbers_of_episodes_are_read_back_in_their_order(numbers: list[int]) -> None:
    assert parse_numbers(format_numbers(numbers)) == tuple(numbers)


VALUES = {
    str: st.text(),
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    dict: st.dictionaries(st.text(), st.text() | st.lists(FINITE), max_size=3),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    kinds = get_args(hint) or (hint,)
    return st.one_of(st.none() if kind is type(None) else VALUES[kind] for kind in kinds)


RECORDS = st.fixed_dictionaries(
    {name: values(hint) for name, hint in FIELDS.items()}, optional={"alignment": VALUES[dict]}
)


@given(st.dictionaries(st.text(), st.lists(RECORDS, min_size=1, max_size=3), max_size=3))
def test_rollouts_are_read_back_from_parquet_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, rollouts: dict[str, list[dict[str, Any]]]
) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "rollouts.parquet"
    write_rollouts(path, rollouts)
    found = read_rollouts(path)
    assert json.dumps(found, sort_keys=True) == json.dumps(rollouts, sort_keys=True)
