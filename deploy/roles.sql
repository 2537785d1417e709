-- Two roles in PostgreSQL: taskd_owner owns the tables and changes them, taskd is the role of the daemons. It reads and
-- writes rows, and can neither alter nor drop anything.
--
-- A superuser runs this in the database of taskd, and may run it again:
--
--     createdb taskd
--     psql --dbname taskd --set ON_ERROR_STOP=1 --file deploy/roles.sql
--     psql --dbname taskd --command '\password taskd_owner' --command '\password taskd'
--
-- Then migrate as taskd_owner (bin/taskadmin migrate), run this file again, which takes back what the daemons need not
-- do with the new tables, and start the daemons with POSTGRES_USER=taskd.

SELECT 'CREATE ROLE taskd_owner LOGIN' WHERE to_regrole('taskd_owner') IS NULL \gexec
SELECT 'CREATE ROLE taskd LOGIN' WHERE to_regrole('taskd') IS NULL \gexec

BEGIN;

DO $$ BEGIN
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = 'taskd') THEN
        RAISE EXCEPTION 'the role taskd is a superuser, whom nothing can be refused: use another database server, or'
            ' make taskd an ordinary role';
    END IF;
END $$;

-- The owner of a database may create tables in its schema public.
SELECT format('ALTER DATABASE %I OWNER TO taskd_owner', current_database()) \gexec
-- Before PostgreSQL 15 everybody may create tables in the schema public.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO taskd_owner;
REVOKE CREATE ON SCHEMA public FROM taskd;
GRANT USAGE ON SCHEMA public TO taskd;

-- Temporary tables are of no use to the daemons, and other databases of this server are none of their business.
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO taskd_owner, taskd', current_database()) \gexec

-- What exists already, for example because a daemon has made it as another role.
SELECT format('ALTER %s %s OWNER TO taskd_owner', CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, oid::regclass)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') \gexec
-- The sequence of an identity column changes its owner with its table; these stand alone.
SELECT format('ALTER SEQUENCE %s OWNER TO taskd_owner', s.oid::regclass)
FROM pg_class s WHERE s.relnamespace = 'public'::regnamespace AND s.relkind = 'S'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = s.oid AND d.deptype IN ('a', 'i')) \gexec
-- Functions of an extension belong to the extension.
SELECT format('ALTER ROUTINE %s OWNER TO taskd_owner', p.oid::regprocedure)
FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e') \gexec
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO taskd;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO taskd;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO taskd;

-- What migrations will make.
ALTER DEFAULT PRIVILEGES FOR ROLE taskd_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO taskd;
ALTER DEFAULT PRIVILEGES FOR ROLE taskd_owner IN SCHEMA public GRANT USAGE ON SEQUENCES TO taskd;
ALTER DEFAULT PRIVILEGES FOR ROLE taskd_owner IN SCHEMA public GRANT EXECUTE ON FUNCTIONS TO taskd;

-- The audit only grows: forget_audit(), which belongs to the owner, deletes old rows.
SELECT 'REVOKE UPDATE, DELETE ON audit FROM taskd' WHERE to_regclass('audit') IS NOT NULL \gexec
SELECT 'REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM taskd'
WHERE to_regclass('schema_migrations') IS NOT NULL \gexec

COMMIT;
