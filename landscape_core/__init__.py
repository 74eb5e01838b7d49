"""The geometry of neural-network loss landscapes, every number with its error.

>>> import landscape_core as lc
>>> import torch.nn.functional as F
>>> data = lc.load("digits", subset=(300, 100))
>>> model = lc.MLP(data.input_shape, data.classes, width=16)
>>> history = lc.train(model, data, lc.TrainConfig(epochs=3), progress=False)
>>> objective = lc.Objective(model, F.cross_entropy, data.train)
>>> pairs = lc.top_eigenpairs(lc.Hessian(objective), k=2)
>>> bool(pairs.converged.all())
True
"""

from importlib.metadata import version

from landscape_core.curvature.density import SpectralDensity, spectral_density
from landscape_core.curvature.eigen import power_iteration, top_eigenpairs
from landscape_core.curvature.gauss_newton import Fisher, GaussNewton
from landscape_core.curvature.hessian import Hessian, ObjectiveOperator
from landscape_core.curvature.layers import LayerCurvature, LayerTable, layer_curvature
from landscape_core.curvature.moments import effective_rank, trace_of_square
from landscape_core.curvature.operators import Matrix, SymmetricOperator
from landscape_core.curvature.summary import CurvatureSummary, curvature_summary
from landscape_core.curvature.trace import DiagonalEstimate, diagonal, trace
from landscape_core.experiments.data import Images, Split, images, load
from landscape_core.experiments.ensemble import train_ensemble
from landscape_core.experiments.history import (
    EpochRecord,
    History,
    TrainConfig,
    TrainingState,
)
from landscape_core.experiments.metrics import landscape_metrics
from landscape_core.experiments.models import MLP, ResNet, SmallCNN
from landscape_core.experiments.parameters import ParameterError, check_parameters, rerun_line
from landscape_core.experiments.records import DamagedRecordError, Record
from landscape_core.experiments.regularizers import (
    SAM,
    FlatnessPenalty,
    GradientPenalty,
    LabelNoise,
    RegularizedStep,
    Regularizer,
)
from landscape_core.experiments.statistics import (
    Interval,
    correlation,
    holm,
    mean_interval,
    paired_difference,
)
from landscape_core.experiments.store import Store, reference
from landscape_core.experiments.study import StoreError, Study, grid
from landscape_core.experiments.tables import (
    compare_groups,
    compare_runs,
    correlations,
    summarize,
)
from landscape_core.experiments.tracking import CurvatureTracker, WeightTracker
from landscape_core.experiments.training import train
from landscape_core.geometry.alignment import Alignment, align
from landscape_core.geometry.ascent import (
    WorstSharpness,
    box_sharpness,
    m_sharpness,
    worst_sharpness,
)
from landscape_core.geometry.balls import Ball
from landscape_core.geometry.curves import Bezier, Curve, CurveEpoch, Polygon, path_length
from landscape_core.geometry.directions import random_directions
from landscape_core.geometry.fitting import fit_path
from landscape_core.geometry.frames import Frame, frame_of_trajectory, frame_through
from landscape_core.geometry.matrix import BarrierMatrix, barrier_matrix
from landscape_core.geometry.noise import NoiseScale, gradient_noise_scale
from landscape_core.geometry.paths import Path, PathProfile, Segment, barrier, path_profile
from landscape_core.geometry.permutations import Axis, PermutationSpec
from landscape_core.geometry.sharpness import (
    FlatnessProfile,
    NoiseRobustness,
    RandomSharpness,
    flatness_profile,
    noise_robustness,
    random_sharpness,
    relative_curvature,
)
from landscape_core.geometry.slices import Line, Plane, line, plane
from landscape_core.geometry.stochastic import (
    NoiseAlignment,
    batch_sharpness,
    exact_noise_scale,
    noise_alignment,
)
from landscape_core.geometry.tracing import trace_permutations
from landscape_core.objective import Objective
from landscape_core.parameter_space import ParameterSpace
from landscape_core.results import Eigenpairs, Estimate, Evaluation, with_error
from landscape_core.show.difference import plot_difference
from landscape_core.show.explorers import plot_contour_steps, plot_line_steps
from landscape_core.show.ledger import Entry, Ledger, ledger
from landscape_core.show.page import Number, Page
from landscape_core.show.picture import Picture
from landscape_core.show.plots import (
    plot_flatness,
    plot_images,
    plot_lines,
    plot_paths,
    plot_training,
)
from landscape_core.show.report import report
from landscape_core.show.seeds import plot_epochs, plot_groups, plot_scatter
from landscape_core.show.settings import Setting, plot_settings
from landscape_core.show.spectra import plot_convergence, plot_density, plot_density_steps
from landscape_core.show.surfaces import plot_contours, plot_surface
from landscape_core.show.tables import summary_table
from landscape_core.show.walk import plot_walk
from landscape_core.show.widgets import explore

__version__ = version("landscape-core")

__all__ = [
    "MLP",
    "SAM",
    "Alignment",
    "Axis",
    "Ball",
    "BarrierMatrix",
    "Bezier",
    "CurvatureSummary",
    "CurvatureTracker",
    "Curve",
    "CurveEpoch",
    "DamagedRecordError",
    "DiagonalEstimate",
    "Eigenpairs",
    "Entry",
    "EpochRecord",
    "Estimate",
    "Evaluation",
    "Fisher",
    "FlatnessPenalty",
    "FlatnessProfile",
    "Frame",
    "GaussNewton",
    "GradientPenalty",
    "Hessian",
    "History",
    "Images",
    "Interval",
    "LabelNoise",
    "LayerCurvature",
    "LayerTable",
    "Ledger",
    "Line",
    "Matrix",
    "NoiseAlignment",
    "NoiseRobustness",
    "NoiseScale",
    "Number",
    "Objective",
    "ObjectiveOperator",
    "Page",
    "ParameterError",
    "ParameterSpace",
    "Path",
    "PathProfile",
    "PermutationSpec",
    "Picture",
    "Plane",
    "Polygon",
    "RandomSharpness",
    "Record",
    "RegularizedStep",
    "Regularizer",
    "ResNet",
    "Segment",
    "Setting",
    "SmallCNN",
    "SpectralDensity",
    "Split",
    "Store",
    "StoreError",
    "Study",
    "SymmetricOperator",
    "TrainConfig",
    "TrainingState",
    "WeightTracker",
    "WorstSharpness",
    "align",
    "barrier",
    "barrier_matrix",
    "batch_sharpness",
    "box_sharpness",
    "check_parameters",
    "compare_groups",
    "compare_runs",
    "correlation",
    "correlations",
    "curvature_summary",
    "diagonal",
    "effective_rank",
    "exact_noise_scale",
    "explore",
    "fit_path",
    "flatness_profile",
    "frame_of_trajectory",
    "frame_through",
    "gradient_noise_scale",
    "grid",
    "holm",
    "images",
    "landscape_metrics",
    "layer_curvature",
    "ledger",
    "line",
    "load",
    "m_sharpness",
    "mean_interval",
    "noise_alignment",
    "noise_robustness",
    "paired_difference",
    "path_length",
    "path_profile",
    "plane",
    "plot_contour_steps",
    "plot_contours",
    "plot_convergence",
    "plot_density",
    "plot_density_steps",
    "plot_difference",
    "plot_epochs",
    "plot_flatness",
    "plot_groups",
    "plot_images",
    "plot_line_steps",
    "plot_lines",
    "plot_paths",
    "plot_scatter",
    "plot_settings",
    "plot_surface",
    "plot_training",
    "plot_walk",
    "power_iteration",
    "random_directions",
    "random_sharpness",
    "reference",
    "relative_curvature",
    "report",
    "rerun_line",
    "spectral_density",
    "summarize",
    "summary_table",
    "top_eigenpairs",
    "trace",
    "trace_of_square",
    "trace_permutations",
    "train",
    "train_ensemble",
    "with_error",
    "worst_sharpness",
]
