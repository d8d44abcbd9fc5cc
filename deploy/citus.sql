-- Distributes the tables over a Citus cluster: once, on the coordinator, after the first start of the service. It may run
-- again.
--
--     psql -X -v ON_ERROR_STOP=1 "$DATABASE_URL" -f deploy/citus.sql

DO $$
    DECLARE
        setting text;
    BEGIN
        FOREACH setting IN ARRAY ARRAY[
            -- Uploads refer to users. They stay plain tables all the same: as tables that Citus knows, they could not
            -- be updated by clock_timestamp().
            'citus.enable_local_reference_table_foreign_keys = off',
            -- A new schema.sql changes distributed tables, and users, in one transaction.
            'citus.multi_shard_modify_mode = sequential'
        ] LOOP
            EXECUTE format('ALTER DATABASE %I SET %s', current_database(), setting);
            EXECUTE format('SET %s', setting);
        END LOOP;
    END
$$;

-- Every shard refers to these: each server has them whole.
SELECT create_reference_table(name) FROM (VALUES ('users'), ('repositories')) AS t (name)
WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = name::regclass);
-- Everything of a project lives in one shard, so that a request that names the project asks one server.
SELECT create_distributed_table(name, key)
FROM (VALUES ('projects', 'id'), ('members', 'project_id'), ('tasks', 'project_id')) AS t (name, key)
WHERE NOT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = name::regclass);

-- Deletes what was copied to the shards and is left behind, in members and tasks too. (Users are few, and uploads refer to
-- them.)
SELECT truncate_local_data_after_distributing_table('projects');
