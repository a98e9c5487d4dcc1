"""This library: Imagen and GigaGAN with the settings of their presets `cpu-32`.

Trained as `Trainer.fit` does, on one core: AdamW, warm-up and cosine schedule, clipping
at norm 1, EMA. The schedule ends with the budget; a run is made for each budget.
"""

from itertools import count

import torch

from t2i_tutorial.clip import lr_at_step
from t2i_tutorial.core import seeded_generator
from t2i_tutorial.diffusion.imagen import Imagen, imagen_preset
from t2i_tutorial.gan.gigagan import GigaGAN, caption_attributes, gigagan_preset
from t2i_tutorial.training import EMA, clip_grad_norm

from . import TINY, Adapter

SMALL_UNET = {  # to prove the code
    "unet.channels": (16, 32),
    "unet.num_res_blocks": (1, 1),
    "unet.self_attention": (False, True),
    "unet.cross_attention": (False, True),
    "unet.cond_dim": 64,
}


class SavedEMA:
    "The state of an `EMA`, as the harness saves it."

    def __init__(self, ema: EMA):
        self.ema = ema

    def state_dict(self) -> dict:
        return {"average": self.ema.average, "num_updates": self.ema.num_updates}

    def load_state_dict(self, state: dict) -> None:
        for name, value in self.ema.average.items():
            value.copy_(state["average"][name])
        self.ema.num_updates = state["num_updates"]


class OursImagen(Adapter):
    "Our Imagen."

    batch_size = 32
    needs_budget = True
    step_counts = (5, 10, 20, 50, 100, 250, 1000)
    own_steps = 20
    guidance_scales = (None,)  # the preset's, 2
    sampler = "dpmpp-2m"

    def build(self, parameters: int) -> None:
        preset = imagen_preset("cpu-32", SMALL_UNET if parameters <= TINY else {})
        self.config = c = preset.train_config
        self.model = Imagen(preset.model_config, self.texts).train()
        self.weights = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay
        )
        self.ema = EMA(dict(self.model.named_parameters()), c.ema_decay)

    def modules(self) -> list:
        return [self.model]

    def parts(self) -> dict:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "ema": SavedEMA(self.ema),
        }

    def learning_rate(self) -> float:
        "Of the next update: warm-up and cosine; the total follows from the time used."
        c, n = self.config, self.num_updates
        total = c.max_steps
        if self.budget and n:
            total = round(n * self.budget / max(self.core_seconds, 1e-9))
        total = max(total, n + 1)
        warmup = min(c.warmup_steps, total // 10)
        return lr_at_step(n, c.lr, total, warmup, c.lr_schedule)

    def step(self, batch) -> None:
        rng = seeded_generator(0, "step", self.num_updates)
        self.optimizer.zero_grad()
        self.model.training_losses(batch, rng)["loss"].backward()
        clip_grad_norm(self.weights, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.ema.update()

    def draw(self, prompts, steps, guidance_scale):
        options = {"num_steps": steps, "guidance_scale": guidance_scale}
        seed = int(torch.randint(2**31, ()))
        self.model.eval()
        with self.ema.average_parameters():
            images = self.model.sample(
                prompts, seed=seed, sampler=self.sampler, **options
            )
        self.model.train()
        return images


class OursGigaGAN(Adapter):
    """Our GigaGAN.

    For `train_for` with its phases in the preset's proportions of the budget (by its
    number of updates), and for the GAN step alone in its last phase, where both
    networks are trained.
    """

    batch_size = 32
    needs_budget = True

    def build(self, parameters: int) -> None:
        changes = {}
        if parameters <= TINY:
            changes = {
                "generator.channels": (16, 16, 8, 8),
                "discriminator.channels": (16, 16, 8),
            }
        preset = gigagan_preset("cpu-32", changes)
        self.config, self.preset = preset.train_config, preset
        self.model = model = GigaGAN(preset.model_config, self.texts).train()
        model.train_config = preset.train_config
        model.caption_key = caption_attributes
        captions = [c[0] for c in self.data.captions[:4096]]
        pooled = [
            model.encode_captions(captions[i : i + 256]).pooled
            for i in range(0, len(captions), 256)
        ]
        model.generator.mapping.standardize_text(torch.cat(pooled))
        if preset.model_config.clip_weight:
            model.set_clip_negatives(captions[: preset.model_config.clip_num_negatives])
        self.optimizers = {
            phase: torch.optim.AdamW(
                list(model.trainable_parameters(phase)), **self._options(phase)
            )
            for phase in model.phases
        }
        generator = dict(model.generator.named_parameters())
        self.ema = EMA(generator, self.config.ema_decay)
        self.counts = count()

    def _options(self, phase: str) -> dict:
        kwargs = {"lr": self.config.lr, "betas": self.config.betas}
        return kwargs | self.model.optimizer_kwargs(phase)

    def modules(self) -> list:
        return [self.model.generator, self.model.discriminator]

    def parts(self) -> dict:
        return {
            "model": self.model,
            **{f"{k} optimizer": o for k, o in self.optimizers.items()},
            "ema": SavedEMA(self.ema),
        }

    def step_of_preset(self) -> int:
        "The update of the recorded training that this moment of the budget stands for."
        if not self.budget:  # the GAN step alone: both networks, all terms
            c = self.preset.model_config
            return c.pretrain_steps + c.discriminator_only_steps + self.num_updates
        done = min(self.core_seconds / self.budget, 1.0)
        return min(int(done * self.config.max_steps), self.config.max_steps - 1)

    def step(self, batch) -> None:
        model, step = self.model, self.step_of_preset()
        for phase in model.phases_at(step):
            for name in model.phases:
                for p in model.trainable_parameters(name):
                    p.requires_grad_(name == phase)
            optimizer = self.optimizers[phase]
            optimizer.zero_grad()
            rng = seeded_generator(0, "step", self.num_updates, phase)
            model.training_losses(batch, rng, phase)["loss"].backward()
            for group in optimizer.param_groups:
                group |= model.step_kwargs(phase, step)
            optimizer.step()
        for p in model.parameters():
            p.requires_grad_(True)
        self.ema.update()

    def draw(self, prompts, steps, guidance_scale):
        seed = int(torch.randint(2**31, ()))
        self.model.eval()
        with self.ema.average_parameters():
            images = self.model.sample(prompts, seed=seed)
        self.model.train()
        return images
