-- Distributes the tables over a Citus cluster: once, on the coordinator, after the first start of
-- the service. It may run again.
--
--     psql -X -v ON_ERROR_STOP=1 "$DATABASE_URL" -f deploy/citus.sql

DO $$
    DECLARE
        setting text;
    BEGIN
        FOREACH setting IN ARRAY ARRAY[
            -- Otherwise tables that refer to users become local tables of Citus, which cannot be
            -- distributed.
            'citus.enable_local_reference_table_foreign_keys = off',
            -- A new schema.sql changes distributed tables, and users, in one transaction.
            'citus.multi_shard_modify_mode = sequential',
            -- The driver looks up the type of an array once a connection. With shards hidden from
            -- the catalog, that takes a second.
            'citus.override_table_visibility = off'
        ] LOOP
            EXECUTE format('ALTER DATABASE %I SET %s', current_database(), setting);
            EXECUTE format('SET %s', setting);
        END LOOP;
    END
$$;

-- Every shard refers to these: each server has them whole.
SELECT create_reference_table(name) FROM (VALUES ('users'), ('repositories')) AS t (name)
WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = name::regclass);
-- Everything of a project lives in one shard, so that what names the project asks one server.
SELECT create_distributed_table(name, key)
FROM (
    VALUES ('projects', 'id'), ('members', 'project_id'), ('tasks', 'project_id')
) AS t (name, key)
WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = name::regclass);

-- Delete what was copied from the coordinator's own tables and is left behind there.
SELECT truncate_local_data_after_distributing_table(name)
FROM (VALUES ('users'), ('repositories')) AS t (name);
