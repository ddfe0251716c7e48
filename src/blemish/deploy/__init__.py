"""Outside Python training: exported models and what runs them, the service and its page."""
