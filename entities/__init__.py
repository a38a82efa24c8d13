"""The entities that events are about: agents, skills, job roles, industries and teams, on one base entity."""
