"""train with early stopping, on the model that ships: what is printed, and two processes end at the same step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from ti_trainer import formats
from ti_trainer.runs.run_folder import Run
from ti_trainer.tiny_model.making import scenes

QUICK = """
from ti_trainer.training import early_stopping
early_stopping.SHARE, early_stopping.ROUND = 2.0, 2  # measure every 2 steps
from ti_trainer.__main__ import main
raise SystemExit(main())
"""
OPTIONS = (
    *("--max-steps", 30, "--learning-rate", "0.005:4, 3", "--preview-every", 0, "--csv-every", 1),
    *("--gradient-accumulation-steps", 2),
)  # from step 5 on, everything that was learned is destroyed


def run_of(folder: Path) -> Run:
    """The only one."""
    (path,) = folder.glob("textual_inversion/*/*")
    return Run(path)


def test_train_stops_and_two_processes_are_as_one(start: Callable, word_file: Path, tmp_path: Path) -> None:
    images, program = tmp_path / "images", tmp_path / "quick.py"
    images.mkdir()
    scenes.write_images(images, scenes.concept(scenes.CONCEPTS[0], 8, seed=1))
    program.write_text(QUICK, encoding="utf-8")
    outs = []
    for where, python in (
        ("one", (str(program),)),
        ("two", ("-m", "torch.distributed.run", "--nproc-per-node", "2", str(program))),
    ):
        folder = tmp_path / where
        (folder / "embeddings").mkdir(parents=True)
        (folder / "embeddings" / word_file.name).write_bytes(word_file.read_bytes())
        process = start("train", "thing", "--images", images, *OPTIONS, cwd=folder, python=python)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        outs.append(out)
    runs = [run_of(tmp_path / where) for where in ("one", "two")]
    states = [load_file(each.path / "state.safetensors") for each in runs]
    assert states[0].keys() == states[1].keys() > {"best.clip_l", "vectors.clip_l"}
    assert all(torch.equal(each, states[1][key]) for key, each in states[0].items())
    assert runs[0].validation_file.read_bytes() == runs[1].validation_file.read_bytes()
    best = formats.read(tmp_path / "two" / "embeddings" / word_file.name).step
    ended = runs[1].step
    assert best < ended < 30
    for out in outs:
        assert "1 of 8 images is held out for validation." in out
        assert f"Done after step {ended}, on 7 images.\nDone at step {ended}: " in out
        assert f"Best at step {best} of {ended}; the embedding is that of this step." in out
        assert "Train further with: " in out
        assert out.count("Best at step") == 1
