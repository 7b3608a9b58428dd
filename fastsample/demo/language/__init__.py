"""The bundled masked diffusion language model: five numbers added in writing, column by column."""
