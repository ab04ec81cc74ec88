"""A Hugging Face Trainer of two towers: the model returns the loss beside its features."""

import tempfile

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import ModelOutput

from cmx_fast.losses import ClipLoss


class TwoTowers(nn.Module):
    def __init__(self, clip_loss=ClipLoss):
        super().__init__()
        self.image_tower, self.audio_tower = nn.Linear(20, 16), nn.Linear(12, 16)
        self.logit_scale = nn.Parameter(torch.tensor(2.7))
        self.loss = clip_loss()

    def forward(self, image, audio):
        image_features = F.normalize(self.image_tower(image), dim=-1)
        audio_features = F.normalize(self.audio_tower(audio), dim=-1)
        loss = self.loss(image_features, audio_features, self.logit_scale.exp())
        return ModelOutput(loss=loss, image_features=image_features, audio_features=audio_features)


class Gradients(TrainerCallback):
    """Keeps the last step's gradients, which the Trainer clears."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        model.gradients = [parameter.grad.clone() for parameter in model.parameters()]


def main(clip_loss=ClipLoss, steps=20):
    torch.manual_seed(0)
    hidden = torch.randn(64, 8)
    images, audios = hidden @ torch.randn(8, 20), hidden @ torch.randn(8, 12)
    pairs = [{"image": image, "audio": audio} for image, audio in zip(images, audios, strict=True)]
    model = TwoTowers(clip_loss)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=0.02,
            max_grad_norm=0,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=pairs, callbacks=[Gradients()])
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


if __name__ == "__main__":
    print("loss", *(f"{value:.4f}" for value in main()[0]))
