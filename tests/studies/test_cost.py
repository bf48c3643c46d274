"""What a run costs can be counted for every kind of coupling that a study has."""

from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.evaluation.flops import ComputeSetting, training_flops
from simflow_plugin.models.sit import SiT
from simflow_plugin.runs.parts import build_autoencoder
from tests.training.tiny_runs import BACKBONE, tiny_config


def test_alignment_that_reaches_the_autoencoder_through_a_batch_norm_is_counted():
    autoencoder = build_autoencoder(tiny_config("simflow"))
    options = SiT.Options.model_validate({"backbone": BACKBONE, "normalizes_latents": True})
    context = ModelContext(autoencoder.latent_shape(8), 10, AlignmentContext(6, 1, 16))
    aligned = training_flops(autoencoder, SiT(options, context), ComputeSetting(8, True, 0.0, (4, 6)))
    plain = training_flops(
        autoencoder, SiT(options, ModelContext(context.latent_shape, 10)), ComputeSetting(8, True)
    )
    assert aligned > plain
