"""The report: `collect` gathers what is on storage and what latents decode to; `page` shows it."""
