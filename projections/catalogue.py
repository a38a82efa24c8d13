"""The read models that workers keep."""

from projections.agents import AGENTS
from projections.read_model import ReadModel

READ_MODELS: tuple[ReadModel, ...] = (AGENTS,)
