# %% [markdown]
# # A large model: over the GPUs of one process, or a copy in every process of a launch
#
#     python examples/large_model.py --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
#     torchrun --nproc-per-node 4 examples/large_model.py --model CHECKPOINT --forget ... --retain ...
#
# One process spreads the layers over all the GPUs it finds (`device_map="auto"`): for a model that one GPU does not
# hold. A launch of several gives each process a whole copy on a GPU of its own: for more speed. Without `--model` it
# takes a small one that it trains itself. It has been run on CPU alone, in one process and in two: not yet on several
# GPUs.

# %%
import argparse
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

import neuronforget as nf

parser = argparse.ArgumentParser(description="Find and train the neurons of a large model.")
parser.add_argument("--model", help="folder or hub id")
parser.add_argument("--forget", help="rows of JSON with prompt and answer")
parser.add_argument("--retain", help="rows of JSON with prompt and answer")
parser.add_argument("--out", type=Path, default=Path("large-model"))
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()
if args.model and not (args.forget and args.retain):
    parser.error("--model needs --forget and --retain")

cuda = torch.cuda.is_available()
state = PartialState(cpu=not cuda)  # NCCL between GPUs, gloo between CPUs; nothing to join in a process of its own
main = state.is_main_process
args.out.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The corpora, and the model in bfloat16
#
# Half the memory of float32 for the model; what is trained is float32 all the same. Of a mixture of experts
# `nf.open_experts(model)` comes before `nf.LM`; `nf.load` does it by itself.

# %%
if args.model:
    forget, retain = nf.corpora.jsonl(args.forget), nf.corpora.jsonl(args.retain)
else:
    shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
    with state.main_process_first():  # the others find it in the cache
        bed = nf.testbed.people(people=20, forget_people=2, shape=shape, progress=main)
    args.model, forget, retain = bed.lm.name, bed.forget, bed.retain
if state.num_processes > 1:
    lm = nf.load(args.model, dtype=torch.bfloat16, device="cuda" if cuda else "cpu")
else:
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16, device_map="auto")
    lm = nf.LM(model.eval(), AutoTokenizer.from_pretrained(args.model))
size = sum(p.nbytes for p in lm.parameters.values()) / 2**30
if main:
    print(f"{lm}: {size:.3f} GiB on {sorted({str(p.device) for p in lm.parameters.values()})}")
    print(f"{state.num_processes} process(es), {torch.cuda.device_count()} GPU(s)")

# %% [markdown]
# ## Record, in parts that add up
#
# Each process records its share of the batches. A killed run goes on from the folder that `resume` names. Parts of a
# corpus may be recorded by jobs of their own, saved, and added. `torch_hooks` reads the model as it lies on its
# devices.

# %%
record = {"tap": "torch_hooks", "batch_size": 8, "resume": args.out / "recording", "progress": main}
halves = [replace(retain, examples=retain.examples[i::2], name=f"retain, part {i}") for i in range(2)]
moments = [nf.record(lm, corpus, **record) for corpus in (forget, *halves)]
scores = nf.scores.grad_x_act(moments[0], moments[1] + moments[2])
neurons = nf.select.per_layer(scores, 0.1)
if main:
    scores.save(args.out / "scores.safetensors")
    neurons.save(args.out / "neurons.json")
    print(scores, neurons, sep="\n")

# %% [markdown]
# ## Train the chosen neurons alone
#
# What that needs of the memory is told before it begins ("about ... beside the model"), and refused where it is not
# free. `accumulate` and `checkpointing` lower it. Every process returns the same edit.

# %%
train = {"loss": nf.losses.npo, "steps": args.steps, "batch_size": 16, "accumulate": 2, "checkpointing": True}
train |= {"resume": args.out / "training", "progress": main}
edits = {"npo on neurons": nf.erase.finetune(lm, forget, retain, neurons=neurons, **train)}

# %% [markdown]
# ## The baseline: train all of it
#
# In a launch `sharded=True` spreads what is trained, 16 bytes a weight, over the processes.

# %%
edits["npo"] = nf.erase.finetune(lm, forget, retain, sharded=state.num_processes > 1, **train)

# %% [markdown]
# ## What did that do?
#
# One process measures and writes.

# %%
if main:
    for name, edit in edits.items():
        assert edit.certificate(lm).holds
        edit.save(args.out / f"{name.replace(' ', '-')}.safetensors")
    results = nf.evaluate(lm, edits, forget, retain.head(64), strengths=(), damage=None)
    print(results.table("probability").round(3))
    nf.figures.attribution_map(scores, neurons).write_html(args.out / "map.html")
state.destroy_process_group()
