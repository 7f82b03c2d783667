"""`longattn train TASK`, one function for each task; scripts/train_*.py and scripts/distill_attention.py are the same.

Options are model arguments, data arguments and transformers' TrainingArguments. Of several processes
(`accelerate launch -m hf_longattn train …`), only the first one prints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

__all__ = ["app", "choice", "classify", "clm", "distill", "embed", "mlm", "multitask", "qa", "seq2seq", "tokens"]

Arguments = list[str] | None
"""A command line; ``None`` is that of the process."""
Task = Callable[[Arguments], int]


def qa(arguments: Arguments = None) -> int:
    """Fine-tune for extractive question answering (SQuAD, MRQA, TriviaQA, Natural Questions, HotpotQA and data of their shape)."""
    from ..training.args import QA
    from ..training.qa import finetune_qa, qa_table

    return _run(qa, arguments, QA, finetune_qa, qa_table)


def classify(arguments: Arguments = None) -> int:
    """Fine-tune to classify long documents."""
    from ..training.args import CLASSIFICATION
    from ..training.classification import describe_classification_result, finetune_classification

    return _run(classify, arguments, CLASSIFICATION, finetune_classification, describe_classification_result)


def tokens(arguments: Arguments = None) -> int:
    """Fine-tune to tag the words of long documents: named entities over whole documents."""
    from ..training.tokens import TOKENS, finetune_tokens, tokens_result

    return _run(tokens, arguments, TOKENS, finetune_tokens, tokens_result)


def choice(arguments: Arguments = None) -> int:
    """Fine-tune for multiple choice over long documents (RACE, QuALITY, SWAG, WikiHop)."""
    from ..training.choice import CHOICE, choice_result, finetune_choice

    return _run(choice, arguments, CHOICE, finetune_choice, choice_result)


def seq2seq(arguments: Arguments = None) -> int:
    """Fine-tune an encoder-decoder to summarise long documents."""
    from ..training.seq2seq import SEQ2SEQ, finetune_seq2seq, seq2seq_result

    return _run(seq2seq, arguments, SEQ2SEQ, finetune_seq2seq, seq2seq_result)


def embed(arguments: Arguments = None) -> int:
    """Train embeddings of long documents, or with --reranker a cross-encoder, by sentence-transformers' trainers."""
    from ..training.embed import EMBED, embeddings_result, finetune_embeddings

    return _run(embed, arguments, EMBED, finetune_embeddings, embeddings_result)


def mlm(arguments: Arguments = None) -> int:
    """Continue training an encoder on long text: predict masked tokens."""
    from ..training.args import MLM
    from ..training.lm import describe_lm_result, finetune_lm

    return _run(mlm, arguments, MLM, finetune_lm, describe_lm_result)


def clm(arguments: Arguments = None) -> int:
    """Continue training a decoder on long text: predict the next token; with --segments N, segment by segment with a memory."""
    from ..training.args import CLM
    from ..training.lm import describe_lm_result, finetune_lm

    return _run(clm, arguments, CLM, finetune_lm, describe_lm_result)


def multitask(arguments: Arguments = None) -> int:
    """Train one backbone with several named heads, in batches mixed by a temperature; the heads of the checkpoint load singly."""
    from ..training.multitask import MULTITASK, finetune_multitask, multitask_result

    return _run(multitask, arguments, MULTITASK, finetune_multitask, multitask_result)


def distill(arguments: Arguments = None) -> int:
    """Teach a converted model's mechanisms to reproduce softmax attention; with --method, distil a teacher into a student (TinyBERT).

    Without --method, stage 1 trains the mechanisms of all layers in one pass of the frozen original; stage 2 fine-tunes on the
    language-model loss (Zhang et al. 2024, LoLCATs), the original's predictions (Goldstein et al. 2025, RADLADS) or both, with LoRA or,
    with --full, all parameters. Options of TrainingArguments apply to both.
    """
    from ..training.args import DISTILLATION, sets
    from ..training.attention_distillation.distill import distill_attention, markdown
    from ..training.knowledge import KNOWLEDGE, distill_knowledge, knowledge_result

    if sets("method", sys.argv[1:] if arguments is None else arguments):
        return _run(distill, arguments, KNOWLEDGE, distill_knowledge, knowledge_result)
    return _run(distill, arguments, DISTILLATION, distill_attention, markdown)


def _run(task: Task, arguments: Arguments, kinds: Any, train: Callable[..., dict[str, Any]], result: Any = lambda log: "") -> int:
    from ..training.training_loop import run_training

    return run_training(kinds, arguments, task.__doc__ or "", train=train, result=result, prog=f"longattn train {task.__name__}")


app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def _add(task: Task) -> None:
    """The training's own parser reads everything after the name, ``--help`` included."""

    def command(context: typer.Context) -> None:
        raise typer.Exit(task(context.args))

    forwarded = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(task.__name__, help=(task.__doc__ or "").split("\n\n")[0], context_settings=forwarded)(command)


TASKS: tuple[Task, ...] = (qa, classify, tokens, choice, mlm, clm, seq2seq, embed, multitask, distill)
for _task in TASKS:
    _add(_task)
