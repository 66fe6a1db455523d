"""How Alembic reaches the database: through the connection that the service has opened."""

from alembic import context

from distill.live.cloud.tables import META

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=META,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
