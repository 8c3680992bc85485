"""Documents that people read: dataset cards, model cards and the report's page, rendered from templates."""
