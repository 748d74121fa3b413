"""A tiny model, a tiny target and settings that run the whole pipeline in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import toys

SETTINGS = """
seed: 3
threads: 1
model: {dtype: float32, device: cpu}
corpus: {block_tokens: 32}
reinforce: {epochs: 1, learning_rate: 1.0e-3, batch_blocks: 2, accumulation: 1, checkpoint_steps: 2}
anchors: {min_count: 2, min_score: 0.0}
relabel: {top_k: 8, batch_blocks: 4}
finetune: {epochs: 2, learning_rate: 1.0e-3, batch_blocks: 2, accumulation: 1, snapshots: 2, checkpoint_steps: 2}
evaluate: {recall_places: 20, recall_context: 8, loss_blocks: 4, completions: 2, completion_tokens: 5}
"""
RETAIN = (
    "In the morning the sun rose over the hills, and the children went down to the river to play. "
    "Once upon a time there was an old woman who lived by the sea with her three sons and a small grey cat. "
    "They walked to the market, where a farmer sold apples; the dog barked at the carts. "
)


class Tiny:
    """Files of one tiny experiment under `root`, and the command line over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model, self.target, self.retain = root / "model", root / "target", root / "retain"
        self.config, self.out = root / "settings.yaml", root / "run"
        toys.model("llama", 400, seed=1).save_pretrained(self.model)
        toys.tokenizer("bytelevel").save_pretrained(self.model)
        for folder, text in ((self.target, toys.TEXT * 3), (self.retain, RETAIN * 8)):
            folder.mkdir()
            (folder / "one.txt").write_text(text)
        self.config.write_text(SETTINGS)

    def arguments(self, out: Path | None = None) -> list[str]:
        pairs = {
            "--model": self.model,
            "--target": self.target,
            "--retain": self.retain,
            "--config": self.config,
            "--out": out or self.out,
        }
        heldout = f"evaluate.heldout=[{self.retain}]"
        return ["run", *(str(x) for pair in pairs.items() for x in pair), "--set", heldout]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "forgetkit", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.root,
        )

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) of one command."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err
