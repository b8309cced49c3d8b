"""What each process counts, as objects that are passed in; none is a global. Knows Prometheus, no requests."""

from cluster.telemetry.controller import ControllerMetrics as ControllerMetrics
from cluster.telemetry.engine import EngineMetrics as EngineMetrics
from cluster.telemetry.engine import PhaseFigures as PhaseFigures
from cluster.telemetry.engine import RankFigures as RankFigures
from cluster.telemetry.router import RouterMetrics as RouterMetrics
