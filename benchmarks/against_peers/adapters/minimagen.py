"""MinImagen 0.0.9 (AssemblyAI): one U-Net, as its training script uses it.

It pins PyTorch 1.12 and 40 other packages of 2022, which a Python of today cannot
install; it is installed without its pins, and only its model is imported (its
`minimagen.training` imports a function that `datasets` no longer has). The loop is that
file's `MinimagenTrain`: Adam, learning rate 1e-4, clipping "at 50", caption dropout
0.1, no EMA, no schedule; batches of 16, its default of 2 being for its test. Sampling
as shipped: all 1000 ancestral steps of a linear schedule (it cannot leave any out, so
it is judged on fewer prompts), guidance scale 3 as in its README.

Where it was given what favours it: cross-attention at each level but the first (its
example configuration switches it off, so that text enters by one vector only).

Left as shipped (numbers of our notes): clipping clips nothing, for the list of
parameters is empty after the first forward (MI-1); the mean over 256 text positions
includes the null padding, by which captions hardly differ (MI-4); dynamic thresholding
at the 90th percentile (MI-13). The fault between training and sampling of its
super-resolution (MI-2) is not met by one U-Net. Images are not stretched one by one
(MI-7), for that is a part of its data set and not of its model.
"""

import torch

from . import Adapter, fit_width, offline

with offline():
    import minimagen.Imagen as peer
    from minimagen.Unet import Unet

peer.tqdm = lambda steps, *_, **__: steps  # no bars


class MinImagen(Adapter):
    "Its base model, 1000 ancestral steps."

    batch_size = 16
    guidance_scales = (3.0,)
    step_counts = (1000,)  # it has no other sampler
    own_steps = 1000

    def build(self, parameters: int) -> None:
        def unet(dim: int) -> Unet:
            return Unet(
                dim=dim,
                dim_mults=(1, 2, 4),
                text_embed_dim=self.texts.dim,
                num_resnet_blocks=1,
                layer_attns=(False, True, True),
                layer_cross_attns=(False, True, True),
            )

        network = fit_width(unet, parameters, range(8, 97, 8))
        self.imagen = peer.Imagen(
            unets=network,
            text_encoder_name="t5_small",  # not loaded: embeddings are given
            text_embed_dim=self.texts.dim,
            image_sizes=(32,),
            timesteps=1000,
            cond_drop_prob=0.1,
        )
        self.unet = self.imagen.unets[0]
        self.optimizer = torch.optim.Adam(self.imagen.parameters(), lr=1e-4)

    def modules(self) -> list:
        return [self.unet]

    def parts(self) -> dict:
        return {"unet": self.unet, "optimizer": self.optimizer}

    def step(self, batch) -> None:
        text = self.texts.encode(batch.captions)
        self.optimizer.zero_grad()
        loss = self.imagen(
            (batch.images + 1) / 2,
            text_embeds=text.tokens,
            text_masks=text.mask,
            unet_number=1,
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.imagen.parameters(), 50)  # of no tensors
        self.optimizer.step()

    def draw(self, prompts, steps, guidance_scale):
        # fewer steps are the last of the 1000, from noise: they only prove the code
        self.imagen.noise_schedulers[0].num_timesteps = steps or self.own_steps
        text = self.texts.encode(prompts)
        images = self.imagen.sample(
            text_embeds=text.tokens,
            text_masks=text.mask,
            cond_scale=guidance_scale or self.guidance_scales[0],
        )
        self.imagen.noise_schedulers[0].num_timesteps = self.own_steps
        self.imagen.train()
        self.unet.train()
        return images * 2 - 1
