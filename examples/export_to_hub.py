# %% [markdown]
# # Hand an edited model on: a checkpoint folder, and the Hub
#
#     python examples/export_to_hub.py                                   # shows what would be uploaded
#     python examples/export_to_hub.py --licence mit --push owner/name   # uploads it, as a private repository
#
# The folder is an ordinary checkpoint with a model card: what was erased and how, what was measured, the limits. It
# does not hold the erased weights.

# %%
import argparse
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import neuronforget as nf

parser = argparse.ArgumentParser(description="Export an edited model with its card, and upload it if asked to.")
parser.add_argument("--out", type=Path, default=Path("edited-model"))
parser.add_argument("--licence", help="the Hub's name of it (apache-2.0, ...), where the base model's card has none")
parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder there (log in first: hf auth login)")
args = parser.parse_args()

shape = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
bed = nf.testbed.people(people=20, forget_people=2, shape=shape, progress=False)
lm, forget, retain = bed.lm, bed.forget, bed.retain
edit = nf.erase.ablate(lm, nf.select.per_layer(nf.attribute(lm, forget, retain, progress=False), 0.1))

# %% [markdown]
# ## The folder, with what was measured
#
# `request` names what was asked for on the card: not by what it was about.

# %%
metrics = (nf.metrics.exact_match, nf.metrics.nll)
results = nf.evaluate(lm, {"ablate": edit}, forget, retain, metrics=metrics, strengths=(), damage=None, progress=False)
edit.export(lm, args.out, request="request 1", measured=results.rows)
card = ModelCard.load(args.out / "README.md")
if args.licence:
    card.data.license = args.licence
    card.save(args.out / "README.md")
print(card)

# %% [markdown]
# ## Plain transformers reads the same model
#
# To the last bit, without this library.

# %%
plain = AutoModelForCausalLM.from_pretrained(args.out).eval()
tokens = AutoTokenizer.from_pretrained(args.out)(forget.examples[0].prompt, return_tensors="pt").input_ids
with torch.no_grad(), edit.on(lm):
    assert torch.equal(plain(tokens).logits, lm.model(tokens).logits)
print("plain transformers: the same logits, to the bit")

# %% [markdown]
# ## Upload

# %%
for file in sorted(args.out.rglob("*")):
    print(f"{file.stat().st_size:>10,} bytes  {file.relative_to(args.out)}")
if args.push:
    api = HfApi()
    api.create_repo(args.push, private=True, exist_ok=True)
    api.upload_folder(folder_path=args.out, repo_id=args.push, commit_message="An edited model")
    print(f"uploaded to https://huggingface.co/{args.push}")
else:
    print("nothing was uploaded: --push owner/name does that")
