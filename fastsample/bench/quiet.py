"""Output that is ours alone: no progress bars of loading, and no advice, from the libraries."""

from __future__ import annotations

import warnings


def silence() -> None:
    """From here on diffusers and transformers are silent but for errors; to be called before they are used.

    tqdm's warning that a notebook has no widgets for its bars is left out, too.
    """
    warnings.filterwarnings("ignore", message="IProgress not found")
    import diffusers  # only now, as it imports tqdm, which warns
    import transformers

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
