"""A Hugging Face Space: caption an image, ask about it, match texts with it. README.md says how it is set up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import openblip
from openblip.core.errors import UserError
from openblip.generation.config import DecodeConfig

if TYPE_CHECKING:
    from PIL import Image

    from openblip.tasks.predictor import Predictor

BASE = "Salesforce/blip-image-captioning-base,Salesforce/blip-vqa-base,Salesforce/blip-itm-base-coco"


class Demo:
    """Models by what they can do; the first that can does it.

    Args:
        sources: folders, checkpoint files or names on the hub.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self.models: dict[str, Predictor] = {}
        for source in sources:
            predictor = openblip.load(source)
            for name in predictor.can:
                self.models.setdefault(name, predictor)

    def caption(self, image: Image.Image | None, sample: bool, count: float) -> str:
        """Captions, one a line: by beam search, or drawn by nucleus sampling."""
        usual = self.models["caption"].adapter.captioning
        lengths = {"max_new_tokens": usual.max_new_tokens, "min_new_tokens": usual.min_new_tokens}
        number = int(count)
        if sample:
            config = DecodeConfig(sample=True, top_p=0.9, num_sequences=number, **lengths)
        else:
            config = DecodeConfig(num_beams=max(usual.num_beams, number), num_sequences=number, **lengths)
        (captions,) = self.models["caption"].caption([needed(image)], config)
        return "\n".join(caption.text for caption in captions)

    def answer(self, image: Image.Image | None, question: str) -> str:
        """The answer to a question."""
        if not question.strip():
            raise UserError("Write a question.")
        ((answered,),) = self.models["answer"].answer([needed(image)], [question])
        return answered.answers[0].text

    def match(self, image: Image.Image | None, texts: str) -> dict[str, float]:
        """For each line its ITM probability."""
        lines = list(dict.fromkeys(line.strip() for line in texts.splitlines() if line.strip()))
        if not lines:
            raise UserError("Write a text on each line.")
        (matches,) = self.models["match"].match([needed(image)], lines)
        return {match.text: match.itm_probability for match in matches}


def needed(image: Image.Image | None) -> Image.Image:
    """The image.

    Raises:
        UserError: there is none.
    """
    if image is None:
        raise UserError("Choose an image first.")
    return image


def build(demo: Demo) -> Any:
    """The page: a tab for each thing that the models can do."""
    import gradio as gr

    def shown(function: Any) -> Any:
        def call(*inputs: Any) -> Any:
            try:
                return function(*inputs)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return call

    with gr.Blocks(title="OpenBLIP") as page:
        gr.Markdown("# OpenBLIP\nBLIP and BLIP-2: caption an image, ask about it, match texts with it.")
        with gr.Row():
            image = gr.Image(type="pil", label="Image")
            with gr.Column():
                if "caption" in demo.models:
                    with gr.Tab("Caption"):
                        sample = gr.Checkbox(label="nucleus sampling in place of beam search")
                        count = gr.Slider(1, 5, value=1, step=1, label="Captions")
                        written = gr.Textbox(label="Captions", lines=3)
                        gr.Button("Write").click(
                            shown(demo.caption), [image, sample, count], written, api_name="caption"
                        )
                if "answer" in demo.models:
                    with gr.Tab("Ask"):
                        question = gr.Textbox(label="Question", placeholder="what color is the bus?")
                        answer = gr.Textbox(label="Answer")
                        gr.Button("Ask").click(shown(demo.answer), [image, question], answer, api_name="answer")
                if "match" in demo.models:
                    with gr.Tab("Match"):
                        texts = gr.Textbox(label="Texts, one a line", lines=4)
                        # Each text is matched apart: the probabilities do not sum to 1.
                        found = gr.Label(label="ITM probability")
                        gr.Button("Match").click(shown(demo.match), [image, texts], found, api_name="match")
    return page


if __name__ == "__main__":
    sources = os.environ.get("OPENBLIP_MODELS", BASE).split(",")
    build(Demo([source.strip() for source in sources if source.strip()])).launch()
