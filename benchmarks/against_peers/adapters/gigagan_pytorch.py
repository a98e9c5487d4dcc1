"""gigagan-pytorch 0.3.0 (lucidrains): its text-conditional `GigaGAN`, no upsampler.

Generator and discriminator with its defaults (two kernels a layer), learning rate 2e-4,
betas (0.5, 0.9), gradient penalty at every fourth update, EMA 0.995 every 10 updates;
its `train_discriminator_step` and `train_generator_step` are called as its `forward`
calls them, without the files that it writes. Its CLIP is replaced by the frozen
contrastive model that our GigaGAN uses, for text and for its contrastive loss. Both
networks at the width that gives about the number of parameters of ours; `dim_latent` is
as wide as the first level (the README's 512 would be more than the whole of ours).

Where a choice was needed, the one that favours it: attention at the sizes of ours. Its
default is attention at 32 and 16 pixels, an eighth and a sixteenth of its README's 256;
here 32 pixels are the whole image, and squared distances between all of them would take
most of a step.

Left as shipped (numbers of our notes): real images are scored with other images'
captions (GG-1); the matching loss takes the right captions for wrong ones (GG-2) and
reads a logit that does not depend on the text (GG-3), by a formula that overflows
(GG-4); linear layers without the equalised scale of their name (GG-7). Its users report
NaN within 20 updates; whether weights are finite is recorded.
"""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn

from t2i_tutorial.clip import CLIP

from . import Adapter, fit_width, offline

with offline():
    from gigagan_pytorch import (
        Discriminator,
        Generator,
        GigaGAN,
        StyleNetwork,
        TextEncoder,
    )
    from gigagan_pytorch.open_clip import OpenClipAdapter


class FrozenCLIP(OpenClipAdapter):
    "Our contrastive model in the place of theirs."

    def __init__(self, texts):
        nn.Module.__init__(self)
        self.__dict__["texts"] = texts
        self.clip = CLIP.from_pretrained("critters-clip").eval()

    @property
    def dim_latent(self) -> int:
        return self.texts.dim

    def embed_texts(self, texts):
        return self.clip.encode_text(texts), self.texts.encode(texts).tokens

    def contrastive_loss(self, images, texts=None, text_embeds=None):
        "Its symmetric InfoNCE; images are in [0, 1] there, in [-1, 1] here."
        if text_embeds is None:
            text_embeds = self.clip.encode_text(texts)
        image_embeds = self.clip.encode_image(images * 2 - 1)
        similarity = text_embeds @ image_embeds.T * self.clip.logit_scale
        labels = torch.arange(len(similarity))
        loss = nn.functional.cross_entropy
        return (loss(similarity, labels) + loss(similarity.T, labels)) / 2


class GigaGANPytorch(Adapter):
    "Its two training steps."

    batch_size = 32  # as ours, so that the steps can be compared
    half = 2  # networks that share the number of parameters

    def build(self, parameters: int) -> None:
        self.frozen = FrozenCLIP(self.texts)

        def text_encoder(width: int) -> TextEncoder:
            return TextEncoder(
                dim=width, depth=1, clip=self.frozen, heads=4, dim_head=32
            )

        def generator(width: int) -> Generator:
            return Generator(
                image_size=32,
                dim_capacity=width,
                dim_max=8 * width,
                dim_latent=8 * width,
                style_network=StyleNetwork(
                    dim=4 * width, depth=4, dim_text_latent=4 * width
                ),
                text_encoder=text_encoder(4 * width),
                self_attn_resolutions=(8,),
                self_attn_heads=4,
                self_attn_dim_head=32,
                cross_attn_resolutions=(16, 8),
                cross_attn_heads=4,
                cross_attn_dim_head=32,
            )

        def discriminator(width: int) -> Discriminator:
            return Discriminator(
                image_size=32,
                dim_capacity=width,
                dim_max=8 * width,
                multiscale_input_resolutions=(16, 8),
                text_encoder=text_encoder(4 * width),
                attn_resolutions=(8,),
                attn_heads=4,
                attn_dim_head=32,
            )

        frozen = sum(p.numel() for p in self.frozen.parameters())
        wanted = parameters // self.half + frozen  # theirs hold the frozen model too
        folder = tempfile.mkdtemp(prefix="gigagan-")  # it makes two, even if unused
        self.gan = GigaGAN(
            generator=fit_width(generator, wanted, range(2, 33)),
            discriminator=fit_width(discriminator, wanted, range(2, 33)),
            accelerator=Accelerator(cpu=True),
            model_folder=f"{folder}/models",
            results_folder=f"{folder}/results",
        )

    def modules(self) -> list:
        return [self.gan.unwrapped_G, self.gan.unwrapped_D]

    def parts(self) -> dict:
        return {
            "G": self.gan.unwrapped_G,
            "D": self.gan.unwrapped_D,
            "ema": self.gan.G_ema,
            "G optimizer": self.gan.G_opt,
            "D optimizer": self.gan.D_opt,
        }

    def batches(self, batch):
        "What its loader gives; it takes three batches in an update."
        while True:
            yield (batch.images + 1) / 2, batch.captions
            batch = self.stream.next()

    def step(self, batch) -> None:
        loader, steps = self.batches(batch), self.num_updates + 1
        self.gan.train_discriminator_step(
            dl_iter=loader, apply_gradient_penalty=steps % 4 == 0
        )
        self.gan.train_generator_step(dl_iter=loader, batch_size=len(batch.images))

    def draw(self, prompts, steps, guidance_scale):
        noise = torch.randn(len(prompts), self.gan.unwrapped_G.style_network.dim)
        images = self.gan.generate(noise=noise, texts=prompts)
        self.gan.G.train()
        return images.clone() * 2 - 1
