"""The public names, and the modules that they are imported from when first used."""

from .curvature.density import SpectralDensity, spectral_density
from .curvature.eigen import power_iteration, top_eigenpairs
from .curvature.gauss_newton import Fisher, GaussNewton
from .curvature.hessian import Hessian, ObjectiveOperator
from .curvature.layers import LayerCurvature, LayerTable, layer_curvature
from .curvature.moments import effective_rank, trace_of_square
from .curvature.operators import Matrix, SymmetricOperator
from .curvature.summary import CurvatureSummary, curvature_summary
from .curvature.trace import DiagonalEstimate, diagonal, trace
from .experiments.data import Images, Split, images, load
from .experiments.ensemble import train_ensemble
from .experiments.history import (
    EpochRecord,
    History,
    TrainConfig,
    TrainingState,
)
from .experiments.metrics import landscape_metrics
from .experiments.models import MLP, ResNet, SmallCNN
from .experiments.parameters import ParameterError, check_parameters, rerun_line
from .experiments.records import DamagedRecordError, Record
from .experiments.regularizers import (
    SAM,
    FlatnessPenalty,
    GradientPenalty,
    LabelNoise,
    RegularizedStep,
    Regularizer,
)
from .experiments.statistics import (
    Interval,
    correlation,
    holm,
    mean_interval,
    paired_difference,
)
from .experiments.store import Store, reference
from .experiments.study import StoreError, Study, grid
from .experiments.tables import (
    compare_groups,
    compare_runs,
    correlations,
    summarize,
)
from .experiments.tracking import CurvatureTracker, WeightTracker
from .experiments.training import train
from .geometry.alignment import Alignment, align
from .geometry.ascent import (
    WorstSharpness,
    box_sharpness,
    m_sharpness,
    worst_sharpness,
)
from .geometry.balls import Ball
from .geometry.curves import Bezier, Curve, CurveEpoch, Polygon, path_length
from .geometry.directions import random_directions
from .geometry.fitting import fit_path
from .geometry.frames import Frame, frame_of_trajectory, frame_through
from .geometry.matrix import BarrierMatrix, barrier_matrix
from .geometry.noise import NoiseScale, gradient_noise_scale
from .geometry.paths import Path, PathProfile, Segment, barrier, path_profile
from .geometry.permutations import Axis, PermutationSpec
from .geometry.sharpness import (
    FlatnessProfile,
    NoiseRobustness,
    RandomSharpness,
    flatness_profile,
    noise_robustness,
    random_sharpness,
    relative_curvature,
)
from .geometry.slices import Line, Plane, line, plane
from .geometry.stochastic import (
    NoiseAlignment,
    batch_sharpness,
    exact_noise_scale,
    noise_alignment,
)
from .geometry.tracing import trace_permutations
from .objective import Objective
from .parameter_space import ParameterSpace
from .results import Eigenpairs, Estimate, Evaluation, with_error
from .show.difference import plot_difference
from .show.explorers import plot_contour_steps, plot_line_steps
from .show.ledger import Entry, Ledger, ledger
from .show.page import Number, Page
from .show.picture import Picture
from .show.plots import (
    plot_flatness,
    plot_images,
    plot_lines,
    plot_paths,
    plot_training,
)
from .show.report import report
from .show.seeds import plot_epochs, plot_groups, plot_scatter
from .show.settings import Setting, plot_settings
from .show.spectra import plot_convergence, plot_density, plot_density_steps
from .show.surfaces import plot_contours, plot_surface
from .show.tables import summary_table
from .show.walk import plot_walk
from .show.widgets import explore

__version__: str

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
