"""denoising-diffusion-pytorch 2.3.4 (lucidrains): classifier-free guidance by classes.

It reads no text. What favours it most: it is told all seven attributes of every image,
also those that the caption leaves out. One class for each combination would be seen too
rarely, and one for species and body colour alone could not say the rest; so a class is
a number that stands for the whole combination, and the table of class embeddings, which
its U-Net looks up, is replaced by the sum of a table for each attribute. Nothing else
is changed. Its U-Net has three levels, as ours: with the README's fourth the first
level would be 16 channels wide at this number of parameters.

Its `Trainer`'s settings (which reads folders of images and knows no classes, so the
loop is here): Adam, learning rate 1e-4, betas (0.9, 0.99), clipping at 1, EMA 0.995
every 10 updates, batches of 16; its `GaussianDiffusion`'s: noise prediction, cosine
schedule, 1000 steps, dropout 0.5; sampling as its README: 250 DDIM steps with eta 1,
guidance scale 6 rescaled by 0.7, also tried with ours, and the better one counts; along
the training with 100 steps, and `equal_quality.py` measures what the others give.

Left as shipped: with `cond_scale=1` its sampler unpacks one tensor into two (DD-1 in
our notes), so that scale cannot be used; guidance leaves out the component along the
prediction.
"""

import torch
from torch import nn

from t2i_tutorial import critters

from . import Adapter, fit_width, offline

with offline():
    from denoising_diffusion_pytorch import classifier_free_guidance as peer
    from ema_pytorch import EMA

peer.tqdm = lambda steps, **_: steps  # no bars
OPTIONS = {k: list(v) for k, v in critters.ATTRIBUTES.items()}
NUM_CLASSES = 1
for values in OPTIONS.values():
    NUM_CLASSES *= len(values)


class AttributeEmbedding(nn.Module):
    "Class numbers to the sum of an embedding for each attribute."

    def __init__(self, dim: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(len(v), dim) for v in OPTIONS.values())

    def forward(self, classes):
        total = 0
        for table in reversed(self.tables):
            total = total + table(classes % table.num_embeddings)
            classes = classes // table.num_embeddings
        return total


def class_numbers(indices: list[list[int]]) -> torch.Tensor:
    "One number for each combination of values, in the order of `OPTIONS`."
    numbers = torch.zeros(len(indices), dtype=torch.long)
    for k, values in enumerate(OPTIONS.values()):
        numbers = numbers * len(values) + torch.tensor([row[k] for row in indices])
    return numbers


class DenoisingDiffusion(Adapter):
    "Its class-conditional U-Net and diffusion."

    batch_size = 16
    guidance_scales = (6.0, 2.0)
    step_counts = (20, 50, 100, 250)
    own_steps = 250
    judge_steps = 100

    def build(self, parameters: int) -> None:
        def unet(dim: int):
            network = peer.Unet(dim, num_classes=1, dim_mults=(1, 2, 4))
            network.classes_emb = AttributeEmbedding(dim)
            return network

        network = fit_width(unet, parameters, range(8, 65, 4))
        self.diffusion = peer.GaussianDiffusion(
            network, image_size=32, timesteps=1000, sampling_timesteps=250
        )
        self.optimizer = torch.optim.Adam(
            self.diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99)
        )
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10)

    def modules(self) -> list:
        return [self.diffusion.model]

    def parts(self) -> dict:
        return {"model": self.diffusion, "ema": self.ema, "optimizer": self.optimizer}

    def step(self, batch) -> None:
        columns = [self.data.attributes[k][batch.indices].tolist() for k in OPTIONS]
        classes = class_numbers(list(zip(*columns)))
        loss = self.diffusion((batch.images + 1) / 2, classes=classes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def draw(self, prompts, steps, guidance_scale):
        stated = [critters.parse_caption(p) for p in prompts]  # all seven are stated
        rows = [[v.index(s[k]) for k, v in OPTIONS.items()] for s in stated]
        model = self.ema.ema_model
        model.eval()
        model.sampling_timesteps = steps or self.own_steps
        images = model.sample(
            class_numbers(rows), cond_scale=guidance_scale or self.guidance_scales[0]
        )
        return images * 2 - 1
