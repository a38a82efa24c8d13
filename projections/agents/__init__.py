"""The read model `agents`: identity, industry, job role, skills, status and availability of each agent."""

from projections.read_model import ReadModel

AGENTS = ReadModel(name="agents", version=1, tables=("agents",), folder=__name__)
