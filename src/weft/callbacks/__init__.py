"""What goes along with a run: trackers, early stopping, a profiler, and whatever you write yourself.

Each is given to ``weft.run(…, callbacks=[…])``; trackers are named by the setting ``track`` too. What they need is imported when
they are used.
"""

from __future__ import annotations

from weft.callbacks.callback import Callback
from weft.callbacks.early_stopping import EarlyStopping
from weft.callbacks.mlflow import MLflow
from weft.callbacks.profiler import Profiler
from weft.callbacks.tensorboard import TensorBoard
from weft.callbacks.wandb import WandB

__all__ = ["Callback", "EarlyStopping", "MLflow", "Profiler", "TensorBoard", "WandB"]
