-- What made backups or restores of portals' databases fail, all at once, on top of `real_portal.sql`.
CREATE EXTENSION citext;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'uuid-ossp') THEN
        CREATE EXTENSION "uuid-ossp";
    END IF;
END $$;

-- Rows that move: the hash of an enum's value is that of its number, which is another one after a restore.
CREATE TYPE severity AS ENUM ('Info', 'Low', 'Medium', 'High', 'Critical');
CREATE TABLE by_severity (level severity, n integer) PARTITION BY HASH (level);
CREATE TABLE by_severity_0 PARTITION OF by_severity FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE by_severity_1 PARTITION OF by_severity FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE by_severity_2 PARTITION OF by_severity FOR VALUES WITH (MODULUS 3, REMAINDER 2);
INSERT INTO by_severity SELECT (enum_range(NULL::severity))[1 + n % 5], n FROM generate_series(1, 500) AS n;

-- A table that somebody has added to an extension, and an index that was never finished.
CREATE TABLE kept_by_extension (id serial PRIMARY KEY, note text);
INSERT INTO kept_by_extension (note) SELECT 'n' || n FROM generate_series(1, 30) AS n;
ALTER EXTENSION citext ADD TABLE kept_by_extension;
CREATE INDEX never_finished ON dojo_finding (found);
UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'never_finished'::regclass;

-- Functions that look into a schema: one knows which, one does not.
CREATE FUNCTION reports.weight(level text) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT length(level)';
CREATE FUNCTION knows_its_path(level text) RETURNS integer LANGUAGE plpgsql IMMUTABLE SET search_path = reports
AS $$ BEGIN RETURN weight(level); END $$;
CREATE FUNCTION needs_a_path(level text) RETURNS integer LANGUAGE plpgsql IMMUTABLE
AS $$ BEGIN RETURN weight(level); END $$;
CREATE TABLE ranked (level text CHECK (public.knows_its_path(level) > 0), n uuid DEFAULT gen_random_uuid());
INSERT INTO ranked (level) SELECT 'level ' || n FROM generate_series(1, 50) AS n;
CREATE INDEX ranked_level ON ranked (public.knows_its_path(level));
CREATE VIEW weighed AS SELECT n, public.needs_a_path(level) AS weight FROM public.ranked;

-- Triggers of the database: they write whenever a definition changes, and whenever somebody comes.
CREATE TABLE definition_change (tag text, at timestamptz DEFAULT now());
CREATE FUNCTION note_definition() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.definition_change (tag) VALUES (tg_tag);
END $$;
CREATE EVENT TRIGGER note_definition ON ddl_command_end EXECUTE FUNCTION note_definition();
ALTER EVENT TRIGGER note_definition ENABLE ALWAYS;
CREATE TABLE visit (who text DEFAULT session_user, at timestamptz DEFAULT now());
DO $$
BEGIN
    IF current_setting('server_version_num')::integer >= 170000 THEN
        CREATE FUNCTION note_visit() RETURNS event_trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO public.visit DEFAULT VALUES; END';
        CREATE EVENT TRIGGER note_visit ON login EXECUTE FUNCTION note_visit();
        ALTER EVENT TRIGGER note_visit ENABLE ALWAYS;
    END IF;
END $$;

-- Files that rows refer to, and a stored credential.
CREATE TABLE dojo_fileupload (id serial PRIMARY KEY, title text, file varchar(100) NOT NULL);
INSERT INTO dojo_fileupload (title, file) VALUES ('a', 'uploaded_files/a.txt'), ('b', 'uploaded_files/b.txt');
CREATE TABLE dojo_cred_user (id serial PRIMARY KEY, password varchar(600));
INSERT INTO dojo_cred_user (password)
VALUES ('AES.1:000102030405060708090a0b0c0d0e0f:86106e32af8419f87a080352248b8e2b');

COMMENT ON TABLE dojo_finding IS 'what scanners found; ''quoted''';
COMMENT ON COLUMN dojo_finding.title IS 'its title';
SELECT lo_from_bytea(70001, decode(repeat('00ff', 9000), 'hex'));
COMMENT ON LARGE OBJECT 70001 IS 'a large object';
GRANT SELECT ON LARGE OBJECT 70001 TO reader;
CREATE PUBLICATION of_a_schema FOR TABLES IN SCHEMA reports;
CREATE SUBSCRIPTION from_elsewhere CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p
    WITH (connect = false, slot_name = NONE);
