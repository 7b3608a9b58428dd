"""Bad inputs of every command, each with the line that it ends in: `python tests/bad_inputs.py` prints them all.

A line names the argument and its value. Words in braces are files of `prepare`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch.nn.modules.module import register_module_forward_hook

NETWORKS = ("UNet2DConditionModel", "SD3Transformer2DModel", "MaskedDiffusionLM", "TarFlowModel", "TarFlowBlock")

CASES: list[tuple[str, str]] = [
    # commands and options
    ("sampel", "No such command 'sampel'"),
    ("tarflow drae", "No such command 'drae'"),
    ("--nope", "No such option: --nope"),
    ("sample --stepz 3", "No such option: --stepz.*--steps"),
    ("doctor now", r"unexpected extra argument.*now.*fastsample doctor --help"),
    ("tune", "Missing option '--prompts'"),
    ("sample --steps", "--steps.*requires an argument"),
    ("sample --steps three", "--steps = 'three': give an integer"),
    ("sample --steps 2.5", "--steps = '2.5': give an integer"),
    ("sample --guidance high", "--guidance = 'high': give a number"),
    ("sample --seed 3 --seed x", "--seed = '3', 'x': give an integer"),
    ("sample --steps 3 --steps 5", "--steps is there twice"),
    ("bench --resume --no-resume", "--resume is there twice"),
    ("decode --json --json", "--json is there twice"),
    ("tarflow sample --count 1 --count 2", "--count is there twice"),
    # nothing where something is asked for
    ('sample --out ""', "--out = '': give a value"),
    ('sample --solver ""', "--solver = '': give a value"),
    ('sample --grid " "', "--grid = ' ': give a value"),
    ('sample --model "" --prompt a', "--model = '': give a value"),
    ('sample --device ""', "--device = '': give a value"),
    ('sample --prompts ""', "--prompts = '': give a value"),
    ('sample --call ""', "--call = '': give a value"),
    ('sample --prompt ""', "none of them empty"),
    ('bench --out ""', "--out = '': give a value"),
    ('bench --tgate ""', "--tgate = '': give a value"),
    ('bench --parallel ""', "--parallel = '': give a value"),
    ('bench --solver ddim --solver ""', "--solver = 'ddim', '': give a value"),
    ('bench --peer ""', "--peer = '': give a value"),
    ('bench --steps ""', "--steps = '': give a value"),
    ("bench --steps 5,,8", "--steps = '5,,8': give comma-separated integers"),
    ("bench --steps ,", "--steps = ',': give comma-separated integers"),
    ("bench --guidance 3,", "--guidance = '3,': give comma-separated numbers"),
    ("bench --parallel picard,", "iteration = ''"),
    ("bench --parallel picard --window 4,", "--window = '': give comma-separated integers"),
    ('decode --rule ""', "--rule = '': give a value"),
    ("decode --rule threshold+", "'' is none"),
    ("decode --rule threshold:", "option '' in 'threshold:': write key=value"),
    ('tarflow sample --labels ""', "--labels = '': give a value"),
    ("tarflow sample --labels 3,", "--labels = '3,': give comma-separated integers"),
    ('tarflow plan --data "" --out o', "--data = '': give a value"),
    ('tune --prompts {many} --out ""', "--out = '': give a value"),
    ('tune --prompts {many} --folder ""', "--folder = '': give a value"),
    ('solvers ""', "name = '': give a value"),
    # devices
    ("sample --device cuda:99", "--device = 'cuda:99' is not available here"),
    ("sample --device gpu", "--device = 'gpu' is no device: use cpu"),
    ("sample --device cpu:x", "--device = 'cpu:x' is no device"),
    ("sample --device cpu:3", "--device = 'cpu:3' is not available here"),
    ("sample --device meta", "--device = 'meta' is no device"),
    ("bench --device vulkan", "--device = 'vulkan' is no device"),
    ("bench --decode --device xla", "--device = 'xla' is no device"),
    ("decode --device meta", "--device = 'meta' is no device"),
    ("tarflow sample --device hpu", "--device = 'hpu' is no device"),
    ("tarflow plan --device cuda:-1 --out o", "--device = 'cuda:-1' is no device"),
    ("tarflow bench --device meta", "--device = 'meta' is no device"),
    ("tune --prompts {many} --device ipu", "--device = 'ipu' is no device"),
    ("sample --dtype bf16", "--dtype = 'bf16': use one of float32"),
    ("decode --dtype int8", "--dtype = 'int8'"),
    ("sample --offload disk", "--offload = 'disk': use one of none"),
    ("sample --offload model --device cpu", "--offload = 'model' with --device = 'cpu'"),
    # counts
    ("sample --steps 0", "--steps = 0: give an integer of at least 1"),
    ("sample --steps 1000000", "--steps = 1000000: give at most 1000"),
    ("sample --images 1000000000", "--images = 1000000000: give at most"),
    ("sample --images -1", "--images = -1"),
    ("sample --height 0", "--height = 0"),
    ("sample --width 100000000", "--width = 100000000: give at most 16384"),
    ("sample --call guidance_rescale=abc", "argument guidance_rescale = 'abc': .* takes a number, as 0.0"),
    ("sample --call callback_on_step_end=3", "argument callback_on_step_end = 3: .* takes a function"),
    ("sample --height 33", "`height` and `width` have to be divisible by 8 but are 33 and 32"),
    ("sample --call num_images_per_prompt=4", "argument num_images_per_prompt of StableDiffusionPipeline"),
    ("sample --frames 99999999999999999999", "--frames = 99999999999999999999: give at most"),
    ("bench --steps 99999999999999999999", "--steps = 99999999999999999999: give at most 1000"),
    ("bench --steps 5,-3", "steps = -3"),
    ("bench --seeds 1000000000", "--seeds = 1000000000: give at most"),
    ("bench --seeds 0", "--seeds = 0"),
    ("bench --repeats 1000000000", "--repeats = 1000000000: give at most"),
    ("bench --batch 1000000000000", "--batch = 1000000000000: give at most"),
    ("bench --prompts 1000000000", "--prompts = 1000000000: give at most"),
    ("bench --prompts 1", "--prompts = 1: give a file, or a number of at least 2"),
    ("bench --decode --problems 1000000000", "--problems = 1000000000: give at most"),
    ("decode --gen-length 1000000000", "--gen-length = 1000000000: give at most"),
    ("decode --gen-length 0", "--gen-length = 0"),
    ("decode --block-length -2", "block_length = -2"),
    ("decode --block-length 1000", "--block-length = 1000 with --gen-length = 96"),
    ("decode --rule margin --steps 99999999999999999999", "--steps = 99999999999999999999: give at most"),
    ("tarflow sample --count 1000000000", "--count = 1000000000: give at most"),
    ("tarflow plan --batch 1000000000 --out o", "--batch = 1000000000: give at most"),
    ("tarflow plan --repeats 0 --out o", "--repeats = 0"),
    ("tarflow bench --batch 16,1000000000", "--batch = 1000000000: give at most"),
    ("tarflow bench --images 1000000000", "--images = 1000000000: give at most"),
    ("tarflow bench --images 1", "--images = 1: give 0 for none, or 2 and more"),
    ("tune --prompts {many} --steps 100000", "--steps = 100000: give at most 1000"),
    ("tune --prompts {many} --batch 0", "--batch = 0"),
    ("sample --guidance 1e300", r"--guidance = 1e\+300: give at most 1000"),
    ("bench --guidance 3,1e9", r"--guidance = 1e\+09: give at most 1000"),
    ("decode --temperature 1e300", r"--temperature = 1e\+300: give at most 1000"),
    ("tarflow bench --guidance 1e300", r"--guidance = 1e\+300: give at most 1000"),
    ("tune --prompts {many} --guidance 1e300", r"--guidance = 1e\+300: give at most 1000"),
    ("tune --prompts {many} --budget 99999999999999999999", "--budget = 99999999999999999999: give at most"),
    ("tune --prompts {many} --budget 10", "budget = 10: .* need at least"),
    # seeds and labels
    ("sample --seed -1", "--seed = -1: give an integer from 0"),
    ("sample --seed 18446744073709551616", "--seed = 18446744073709551616: give an integer from 0 to"),
    ("sample --seed 18446744073709551615 --images 2", "--seed = 18446744073709551616"),
    ("sample --seed 3 --seed 3", "--seed: 3 is there twice"),
    ("sample --seed 3 --seed 4 --images 2", "--seed: 4 is there twice"),
    ("decode --seed 99999999999999999999999", "--seed = 99999999999999999999999"),
    ("tarflow sample --seed -1", "--seed = -1"),
    ("tarflow plan --seed 18446744073709551616 --out o", "--seed = 18446744073709551616"),
    ("tune --prompts {many} --seed 99999999999999999999999", "--seed = 99999999999999999999999"),
    ("tune --prompts {many} --seed 1 --seed 1", "--seed: 1 is there twice"),
    ("tarflow sample --labels 10", "labels = 10: the model has classes 0 to 9"),
    ("tarflow sample --labels 3,-1", "labels = -1: the model has classes 0 to 9"),
    ("tarflow sample --labels 99999999999999999999999", "labels = 99999999999999999999999: the model has classes"),
    ("tarflow sample --labels 1.5", "--labels = '1.5'"),
    # what is not finite
    ("sample --guidance nan", "guidance = nan"),
    ("sample --guidance 1e400", "guidance = inf"),
    ("sample --guidance=-2", r"guidance = -2"),
    ("sample --parallel picard --tolerance nan", "tolerance = nan"),
    ("sample --parallel picard --tolerance inf", "tolerance = inf"),
    ("sample --solver ghvb:beta=nan", "option beta = nan in 'ghvb:beta=nan'"),
    ("sample --solver dpmpp-2m-sde:eta=-inf", "option eta = -inf"),
    ("sample --solver ghvb --option beta=inf", "option beta = inf"),
    ('sample --solver "euler karras(rho=nan)"', "rho = nan"),
    ('sample --solver "euler beta(nan, 0.5)"', "nan"),
    ("sample --call guidance_rescale=nan", "option guidance_rescale = nan in '--call'"),
    ("bench --guidance 3,nan", "guidance = nan"),
    ("bench --parallel picard --tolerance 1e-2,inf", "tolerance = inf"),
    ("bench --solver hb:beta=inf", "option beta = inf"),
    ("decode --guidance inf", "--guidance = inf: give at most 1000"),
    ("decode --temperature nan", "temperature = nan"),
    ("decode --plan --budget nan", "--budget = nan"),
    ("decode --rule threshold:confidence=nan", "option confidence = nan"),
    ("decode --rule prefix:refresh=inf+threshold", "option refresh = inf"),
    ("decode --rule prophet:thresholds=8/5/nan", "nan"),
    ("tarflow sample --guidance inf", "guidance = inf"),
    ("tarflow sample --guidance 1 --attention-temperature nan", "attention_temperature = nan"),
    ("tarflow plan --residual inf --out o", "target_residual = inf"),
    ("tarflow bench --residual nan", "target_residual = nan"),
    ("tarflow bench --guidance nan", "guidance = nan"),
    ("tune --prompts {many} --guidance nan", "guidance = nan"),
    # solvers, grids, rules
    ("sample --solver dpmp-2m", "'dpmp-2m' .*did you mean"),
    ("sample --solver 日本", "'日本'"),
    ("sample --solver ghvb:order", "option 'order' in 'ghvb:order': write key=value"),
    ("sample --solver ghvb:order=", "option 'order=' in 'ghvb:order=': write key=value"),
    ("sample --solver ghvb:order=2,order=3", "option order in 'ghvb:order=2,order=3' is there twice"),
    ("sample --solver ghvb:order=2 --option order=3", "option order .* is there twice"),
    ("sample --solver ghvb:order=7", "order = 7"),
    ("sample --solver ghvb:gamma=1", "option gamma = 1"),
    ("sample --option order=3", "--option = 'order=3' without --solver"),
    ("sample --solver UniPCMultistep:nonsense=9", "option nonsense = 9 of UniPCMultistep"),
    ("sample --solver ddim:eta=none", "solver = 'ddim:eta=none': its options are of another kind"),
    ("sample --solver sa-solver:start=abc", "solver = 'sa-solver:start=abc'"),
    ("sample --solver dpmpp-2m:lower_final=2", "solver = 'dpmpp-2m:lower_final=2'"),
    ("bench --solver unipc:disable_corrector=3", "disable_corrector = 3"),
    ("sample --solver ghvb:order=99999999999999999999", "option order = 99999999999999999999 .*64 bits"),
    ("decode --rule prefix:refresh=2.5+threshold", "option refresh = 2.5 of prefix: give an integer"),
    ("decode --rule checked:base=none", "option base = None of checked"),
    ("sample --solver EulerDiscreteSheduler", "'EulerDiscreteSheduler' .*did you mean EulerDiscreteScheduler"),
    ("sample --grid karas", "'karas' is unknown: did you mean karras"),
    ('sample --grid "Karras(rho=7)"', "is unknown: did you mean karras"),
    ("sample --grid quadratic --solver DPMSolverMultistep", "--grid = 'quadratic' with --solver = 'DPM"),
    ("sample --grid quadratic --solver ghvb:grid=karras", "--grid = 'quadratic' with --solver = 'ghvb:grid=karras'"),
    ("bench --grid quadratic --solver DPMSolverMultistep", "--grid = 'quadratic': it does nothing for these solvers"),
    ("sample --solver DPMSolverMultistep:grid=karras", "option grid = karras of DPMSolverMultistep: it takes none"),
    ("sample --grid oss-flux", "grid = 'oss-flux' is laid out for flow-matching models"),
    ("sample --solver dpmpp-2m:preset={binary}", "preset = '{binary}'"),
    ("sample --solver dpmpp-2m:preset=nowhere", "preset = 'nowhere' is no file"),
    ("bench --solver ddim --peer DPMSolverMultistop", "did you mean DPMSolverMultistep"),
    ("bench --grid ddim", "'ddim'"),
    ("decode --rule treshold", "did you mean threshold"),
    ("decode --rule threshold:confidence=2", "confidence = 2"),
    ("decode --prompt 1+2+3", "prompt = '1.2.3': the bundled model adds 5 numbers"),
    ("tarflow sample --method newton", "method = 'newton'"),
    ("tune --prompts {many} --solver nope", "'nope'"),
    ("tune --prompts {many} --objective l1", "objective = 'l1'"),
    ("solvers unipcc", "name = 'unipcc' .*did you mean unipc"),
    # twice the same
    ("bench --steps 5,8,5", "--steps: 5 is there twice"),
    ("bench --guidance 3,3.0", "--guidance: 3.0 is there twice"),
    ("bench --solver ghvb --solver ghvb", "--solver: ghvb is there twice"),
    ("bench --peer DDIM --peer DDIMScheduler", "--peer: diffusers DDIM is there twice"),
    ("bench --solver UniPCMultistep --peer UniPCMultistep", "diffusers UniPCMultistep is there twice"),
    ("bench --peer none --peer DDIM", "--peer = 'none', 'DDIM'"),
    ("bench --grid karras --grid karras", "--grid: karras is there twice"),
    ("bench --tgate 3,3", "--tgate: 3 is there twice"),
    ("bench --parallel picard,secant,picard", "--parallel: picard is there twice"),
    ("bench --parallel picard --window 4,all,4", "--window: 4 is there twice"),
    ("bench --parallel picard --tolerance 0,0", "--tolerance: 0.0 is there twice"),
    ("bench --decode --rule threshold --rule threshold", "--rule: threshold is there twice"),
    ("tarflow bench --batch 16,16", "--batch: 16 is there twice"),
    ("tarflow sample --labels 3,3", "--labels: 3 is there twice"),
    ("tune --prompts {many} --steps 5,5", "--steps: 5 is there twice"),
    # without their switch, or beside one that leaves them without effect
    ("sample --window 4", "--window = 4 without --parallel"),
    ("sample --tolerance 0.1", "--tolerance = 0.1 without --parallel"),
    ("bench --window 4", "--window = '4' without --parallel"),
    ("bench --tolerance 0", "--tolerance = '0' without --parallel"),
    ("bench --rule threshold", "--rule = 'threshold' without --decode"),
    ("bench --problems 10", "--problems = 10 without --decode"),
    ("bench --decode --solver ddim", "--solver = 'ddim' with --decode"),
    ("bench --decode --steps 5", "--steps = '5' with --decode"),
    ("bench --decode --seeds 2", "--seeds = 2 with --decode"),
    ("bench --decode --csv", "--csv with --decode"),
    ("decode --budget 0.1", "--budget = 0.1 without --plan"),
    ("decode --plan --rule threshold", "--rule and --steps with --plan"),
    ("decode --plan --seed 3", "--seed = 3 with --plan"),
    ("decode --steps 24", "--steps = 24 with --rule = 'factor:factor=0.3'"),
    ("decode --rule checked+threshold --steps 24", "--steps = 24 with --rule = 'checked.threshold'"),
    ("decode --json --colours", "--colours with --json"),
    ("decode --trust-remote-code", "--trust-remote-code without --model"),
    ("tarflow sample --attention-temperature 2", "--attention-temperature = 2.0 without --guidance"),
    ("tarflow plan --data {binary} --batch 8 --out o", "--batch = 8 with --data = '{binary}'"),
    ("tarflow bench --images 0 --seeds 3", "--seeds = 3 without --images"),
    ("solvers ddim --names", "name = 'ddim' with --names"),
    ("solvers --names --json", "--names with --json"),
    ("sample --negative-prompt blue --guidance 1", "negative_prompt = 'blue' with guidance = 1"),
    ("sample --frames 5", "frames = 5: StableDiffusionPipeline makes images"),
    # gates
    ("sample --parallel picard --steps 1", "--parallel = 'picard' with --steps = 1"),
    ("sample --tgate 21", "gate_step = 21 with 20 steps"),
    ("sample --tgate 0", "gate_step = 0"),
    ("sample --tgate 3 --parallel picard", "--tgate = 3 with --parallel = 'picard'"),
    ("bench --tgate 50", "gate_step = 50 with 20 steps"),
    ("bench --tgate 3,9 --steps 5", "gate_step = 9 with 5 steps"),
    ("bench --parallel picard --steps 1", "--parallel = 'picard' with --steps = 1"),
    # files that are read
    ("sample --prompts {binary}", "--prompts = '{binary}' is no text in UTF-8"),
    ("sample --prompts {latin}", "--prompts = '{latin}' is no text in UTF-8"),
    ("sample --prompts {nul}", "--prompts = '{nul}', line 1, is no text"),
    ("sample --prompts {empty}", "--prompts = '{empty}' is empty"),
    ("sample --prompts {blank}", "--prompts = '{blank}', line 2, is empty"),
    ("sample --prompts {folder}", "--prompts = '{folder}' is no file"),
    ("bench --prompts nowhere.txt", "--prompts = 'nowhere.txt' is no file"),
    ("bench --prompts {many}", "--prompts = '{many}', .* caption = 'a red circle 0': names 0 sizes"),
    ("bench --prompts {one}", "--prompts = '{one}' has 1 prompt"),
    ("decode --prompts {binary}", "--prompts = '{binary}' is no text in UTF-8"),
    ("tune --prompts {many} --check-prompts {binary}", "--check-prompts = '{binary}' is no text in UTF-8"),
    ("tune --prompts {many} --check-prompts {many}", "'a red circle 0' is in --prompts too"),
    ("report nowhere", "folder = 'nowhere' has no results.jsonl"),
    ("report {notes}", "results.jsonl holds a line that is no result.*line 1"),
    ("report {others} --out page.txt", "--out = 'page.txt' is no name of a page"),
    ('report ""', "folder = '': give a value"),
    ("bench --report page.txt", "--report = 'page.txt' is no name of a page"),
    ("sample --solver nowhere.json", "recipe = 'nowhere.json'"),
    ("sample --solver {half}/model_index.json", "recipe = '{half}/model_index.json'"),
    ("tarflow plan --data {binary} --out o", "--data = '{binary}' is no safetensors file"),
    ("sample --model {folder} --prompt a", "--model = '{folder}' is no diffusers folder"),
    ("sample --model {file} --prompt a", "--model = '{file}' is no diffusers folder"),
    ("sample --model {half} --prompt a", "--model = '{half}' could not be loaded"),
    ("sample --model {json} --prompt a", "--model = '{json}' could not be loaded"),
    ("sample --model a/b/c --prompt a", "--model = 'a/b/c' is no diffusers folder"),
    ("bench --model {half} --prompts {many}", "--model = '{half}' could not be loaded"),
    ("bench --decode --model {folder}", "--model = '{folder}': with --decode"),
    ("decode --model {json} --prompt a", "--model = '{json}' could not be loaded"),
    ("decode --model {folder} --prompt a", "--model = '{folder}' is no model's folder"),
    ("tarflow sample --model {half}", "--model = '{half}' could not be loaded"),
    ("tarflow sample --model none.pth", "--model = 'none.pth' is no file"),
    ("tarflow plan", "--out is missing"),
    ("tune --prompts {many} --model {folder}", "--model = '{folder}' is no diffusers folder"),
    # records that are not ours, and where nothing can be written
    ("bench --out {notes}", "results.jsonl holds a line that is no result.*line 1"),
    ("bench --out {notes} --no-resume", "results.jsonl holds a line that is no result.*line 1"),
    ("bench --out {others}", "results.jsonl holds a line that is no result.*line 2"),
    ("bench --out {binaries}", "results.jsonl holds a line that is no result.*line 1"),
    ("bench --decode --out {notes}", "results.jsonl holds a line that is no result.*line 1"),
    ("tarflow bench --out {others} --no-resume", "results.jsonl holds a line that is no result.*line 2"),
    ("bench --decode --out {deep}", "results.jsonl is no file"),
    ("sample --out {file}", "--out = '{file}' is no folder"),
    ("sample --out {file}/x", "--out = '{file}/x' is no folder"),
    ("bench --out /proc/nope", "--out = '/proc/nope' is no folder"),
    ("bench --decode --out {file}", "--out = '{file}' is no folder"),
    ("tarflow sample --out /dev/null", "--out = '/dev/null' is no folder"),
    ("tarflow plan --out {file}", "--out = '{file}' is no folder"),
    ("tarflow bench --out {file}", "--out = '{file}' is no folder"),
    ("tune --prompts {many} --out {folder}", "--out = '{folder}' is no file"),
    ("tune --prompts {many} --out {file}/preset.json", "--out = '{file}' is no folder"),
    ("tune --prompts {many} --folder {file}", "--folder = '{file}' is no folder"),
    # of one command or another
    ('sample --guidance -2', "guidance = -2"),
    ('sample --model /no/such/folder --prompt a', r"no model_index\.json"),
    ('sample --dtype float8', "--dtype = 'float8'"),
    ('sample --out /proc/nope', "--out = '/proc/nope'"),
    ('sample --out /etc/hostname', "--out = '/etc/hostname'"),
    ('sample --tgate 9 --steps 5', "gate_step = 9 with 5 steps"),
    ('bench --tgate 0,5', "gate_step = 0"),
    ('bench --tgate five', "--tgate = 'five'"),
    ('sample --parallel newton', "iteration = 'newton'"),
    ('sample --parallel secant --window 0', "window = 0"),
    ('sample --parallel secant --tolerance -1', "tolerance = -1"),
    ('sample --parallel secant --tgate 3', "T-GATE counts sequential steps"),
    ('bench --parallel picard,newton', "iteration = 'newton'"),
    ('bench --parallel picard --window most', "--window = 'most'"),
    ('bench --parallel picard --tolerance 1e-2,-1', "tolerance = -1"),
    ('sample --solver ghvb --option gamma=1', "option gamma = 1"),
    ('sample --option order', "write key=value"),
    ('sample --solver ghvb --option order=7', "order = 7"),
    ('sample --prompts nowhere.txt', r"nowhere\.txt"),
    ("sample --prompt ' '", "none of them empty"),
    ('bench --peer DPMSolverMultistop', "did you mean DPMSolverMultistep"),
    ('bench --steps 5,x', "--steps = '5,x'"),
    ('bench --steps 0', "steps = 0"),
    ('bench --guidance inf', "guidance = inf"),
    ('bench --batch 0', "--batch = 0"),
    ('bench --solver hb:beta=0', "beta = 0"),
    ('decode --rule threshold:gamma=1', "option gamma = 1 of threshold"),
    ('decode --rule threshold:confidence', "write key=value"),
    ('decode --rule threshold+margin', "before one rule"),
    ('decode --rule lrd+lrd+margin', "each once"),
    ('decode --rule prophet:thresholds=1/2/3', "must not rise"),
    ('decode --rule prophet:thresholds=a/b/c', "give numbers"),
    ('decode --rule margin:steps=0', "steps = 0"),
    ('decode --block-length 0', "block_length = 0"),
    ('decode --rule prophet:region=94/4', "outside the response"),
    ('decode --prompt 2+2', "adds 5 numbers"),
    ('decode --prompts nowhere.txt', r"nowhere\.txt"),
    ('decode --model ./nothing --prompt a', r"no config\.json"),
    ('decode --model some/thing', "give at least one"),
    ('decode --seed -1', "seed = -1"),
    ('decode --temperature -1', "temperature = -1"),
    ('decode --device gpu', "--device = 'gpu'"),
    ('bench --decode --rule nope', "'nope' is none"),
    ('bench --decode --problems 0', "--problems = 0"),
    ('bench --decode --batch 0', "--batch = 0"),
    ('bench --decode --model some/thing', r"scripts/train_language\.py"),
    ('bench --decode --out /proc/nope', "--out = '/proc/nope'"),
    ('tarflow sample --labels a', "--labels = 'a'"),
    ('tarflow sample --count 0', "--count = 0"),
    ('tarflow sample --guidance -1', "guidance = -1"),
    ('tarflow sample --model /no/such/folder', r"no model_index\.json"),
    ('tarflow sample --model weights.pth', "is no file"),
    ('tarflow plan --residual 0 --out .', "target_residual = 0"),
    ('tarflow plan --data none.safetensors', r"--data = 'none\.safetensors'"),
    ('tarflow bench --batch 16,0', "--batch = 0"),
    ('tarflow bench --images -1', "--images = -1"),
    ('tarflow bench --images -500', "--images = -500"),
    ('tarflow bench --model x/y', "only the bundled digits have a classifier"),
]  # fmt: skip

FILES: dict[str, bytes | None] = {
    "binary": bytes(range(256)),
    "latin": "café\n".encode("latin-1"),
    "nul": b"a\0b\n",
    "empty": b"",
    "blank": b"a red circle\n \n",
    "many": b"".join(b"a red circle %d\n" % number for number in range(20)),
    "one": b"a small red circle at the left on a white background\n",
    "file": b"x",
    "folder": None,
    "half/model_index.json": b"{}",
    "json/model_index.json": b'{"_class_name": NaN',
    "json/config.json": b'{"model_type": NaN',
    "notes/results.jsonl": b"milk\n" + b'{"key": "a"}\n',
    "others/results.jsonl": b'{"key": "a"}\n{"name": 1}\n',
    "binaries/results.jsonl": bytes(range(256)) * 4,
    "deep/results.jsonl": None,
}
"""What the cases name, by path; None is a folder."""


@dataclass(frozen=True)
class Outcome:
    """What a command ended with, the files that it left, and the networks that it evaluated."""

    status: int
    out: str
    err: str
    seconds: float
    files: list[str]
    evaluated: list[str]


def prepare(folder: Path) -> None:
    """Write the files of the cases."""
    for name, content in FILES.items():
        path = folder / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)


def filled(text: str) -> str:
    """`text` with the names of the files for the words in braces."""
    names = "|".join({name.split("/")[0] for name in FILES})
    return re.sub(rf"\{{({names})\}}", r"\1", text)


def outcome(arguments: Sequence[str], folder: Path) -> Outcome:
    """Of `fastsample` with these arguments, run in this process in `folder`."""
    from fastsample.cli import main  # the settings of `__main__` below stand before it

    out, err, before = io.StringIO(), io.StringIO(), set(folder.rglob("*"))
    with (
        mock.patch.object(sys, "argv", ["fastsample", *arguments]),
        mock.patch.dict(os.environ, {"FASTSAMPLE_CACHE": str(folder / "cache")}),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _evaluations() as evaluated,
    ):
        began = time.perf_counter()
        try:
            main.run()
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        seconds = time.perf_counter() - began
    files = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
    return Outcome(status, out.getvalue(), err.getvalue(), seconds, files, evaluated)


def faults(found: Outcome, pattern: str) -> list[str]:
    """What is wrong about how a bad input ended; nothing where all is right."""
    checks = {
        f"status {found.status}": found.status == 2,
        f"printed {found.out!r}": not found.out,
        f"{found.err.count(chr(10))} lines": found.err.startswith("error: ") and found.err.count("\n") == 1,
        f"no {pattern!r} in {found.err!r}": re.search(pattern, found.err) is not None,
        f"evaluated {found.evaluated}": not found.evaluated,
        f"left {found.files}": not found.files,
    }
    return [fault for fault, holds in checks.items() if not holds]


@contextlib.contextmanager
def _evaluations() -> Iterator[list[str]]:
    """The names of the networks that are evaluated in the block."""
    names: list[str] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        if type(module).__name__ in NETWORKS:
            names.append(type(module).__name__)

    handle = register_module_forward_hook(note)
    try:
        yield names
    finally:
        handle.remove()


def main() -> int:
    """Print every command with its line; how many did not end as they should."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for line, pattern in CASES:
            found = outcome(shlex.split(filled(line)), Path(name))
            bad = faults(found, filled(pattern))
            wrong += bool(bad)
            print(f"{'WRONG' if bad else 'right'} {found.seconds:5.2f} s  fastsample {filled(line)}")
            print("\n".join(f"      {text}" for text in [found.err.rstrip(), *bad]), flush=True)
    print(f"{len(CASES)} inputs, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main() > 0)
