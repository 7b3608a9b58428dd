"""Where caches were before they moved to `fastsample.pipelines`; saved pipelines name a module here."""
