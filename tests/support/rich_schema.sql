-- A bit of everything that PostgreSQL keeps, so that a restore that loses something is found out.

CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE EXTENSION pg_trgm;
CREATE EXTENSION btree_gist;

CREATE SCHEMA audit;
CREATE SCHEMA "Quoted ""Schema""";
COMMENT ON SCHEMA audit IS 'who did what';

CREATE TYPE public.severity AS ENUM ('info', 'low', 'high', 'sehr höch');
CREATE DOMAIN public.cwe AS integer CHECK (VALUE BETWEEN 1 AND 99999);
CREATE TYPE public.span AS (first_line integer, last_line integer);
CREATE TYPE public.days AS RANGE (subtype = date);

CREATE SEQUENCE public.ticket START 1000 INCREMENT 7 CACHE 5;
SELECT nextval('public.ticket'), nextval('public.ticket');

CREATE TABLE public.asset (
    id bigint GENERATED ALWAYS AS IDENTITY (START 50) PRIMARY KEY,
    name citext NOT NULL UNIQUE,
    labels hstore DEFAULT ''::hstore,
    reserved daterange,
    EXCLUDE USING gist (reserved WITH &&, id WITH =)
);
INSERT INTO public.asset (name, labels, reserved)
SELECT 'Asset ' || n, hstore('n', n::text), daterange('2024-01-01'::date + n, '2024-01-09'::date + n)
FROM generate_series(1, 200) AS n;
COMMENT ON TABLE public.asset IS E'a comment; with ''quotes'' and a\nsecond line';
COMMENT ON COLUMN public.asset.labels IS 'anything';

CREATE TABLE public.weakness (
    id serial PRIMARY KEY,
    asset_id bigint REFERENCES public.asset ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    level public.severity DEFAULT 'low',
    number public.cwe,
    lines public.span,
    seen public.days,
    width integer DEFAULT 2,
    height integer DEFAULT 3,
    area integer GENERATED ALWAYS AS (width * height) STORED,
    note text CHECK (note <> 'forbidden'),
    raw bytea,
    numbers numeric(20, 5)[],
    CONSTRAINT "odd name ✓" CHECK (width > 0)
);
INSERT INTO public.weakness (asset_id, level, number, lines, seen, width, note, raw, numbers)
SELECT 50 + n % 200, (enum_range(NULL::public.severity))[n % 4 + 1], n, ROW(n, n + 1)::public.span,
       '[2024-01-01,2024-02-01)', n,
       CASE WHEN n % 5 = 0 THEN NULL ELSE E'tab\tand \\ and "é" ' || repeat(md5(n::text), n % 40) END,
       decode(md5(n::text), 'hex'), ARRAY[n, NULL, n / 3.0]
FROM generate_series(1, 1500) AS n;
SET CONSTRAINTS ALL IMMEDIATE;
ALTER TABLE public.weakness ALTER COLUMN note SET STORAGE EXTERNAL;
CREATE INDEX weakness_note ON public.weakness USING gin (note gin_trgm_ops);
CREATE INDEX weakness_partial ON public.weakness (lower(note), number DESC) WHERE level = 'high';
CREATE STATISTICS public.weakness_stats (dependencies) ON width, area FROM public.weakness;

CREATE TABLE audit.event (happened timestamptz NOT NULL, actor text, detail jsonb) PARTITION BY RANGE (happened);
CREATE TABLE audit.event_2023 PARTITION OF audit.event FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE audit.event_2024 PARTITION OF audit.event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')
    PARTITION BY HASH (actor);
CREATE TABLE audit.event_2024_0 PARTITION OF audit.event_2024 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE audit.event_2024_1 PARTITION OF audit.event_2024 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE audit.event_rest PARTITION OF audit.event DEFAULT;
CREATE INDEX event_actor ON audit.event (actor);
INSERT INTO audit.event
SELECT '2023-06-01'::timestamptz + n * interval '1 day', 'actor ' || n % 7, jsonb_build_object('n', n)
FROM generate_series(1, 900) AS n;

CREATE TABLE "Quoted ""Schema"""."Table; DROP" ("Column, 1" text, "select" integer);
INSERT INTO "Quoted ""Schema"""."Table; DROP" VALUES ('ünï', 1), (NULL, 2), (E'\\N', 3), ('', 4);
CREATE TABLE public.parent (id integer);
CREATE TABLE public.child (more text) INHERITS (public.parent);
INSERT INTO public.parent VALUES (1);
INSERT INTO public.child VALUES (2, 'x'), (3, 'y');
CREATE UNLOGGED TABLE public.session (id uuid, data text);
INSERT INTO public.session VALUES ('00000000-0000-0000-0000-000000000001', 'kept');
CREATE TABLE public.nothing ();

CREATE FUNCTION public.note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit.event VALUES ('2030-01-01', TG_TABLE_NAME, to_jsonb(NEW.id));
    RETURN NEW;
END $$;
CREATE TRIGGER weakness_changes AFTER UPDATE ON public.weakness FOR EACH ROW EXECUTE FUNCTION public.note_change();
CREATE FUNCTION public.twice(value integer DEFAULT 1) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 2 * value';
CREATE PROCEDURE audit.forget() LANGUAGE sql AS 'DELETE FROM audit.event_rest';
CREATE AGGREGATE public.total (integer) (sfunc = int4pl, stype = integer, initcond = '0');
CREATE OPERATOR public.=== (leftarg = integer, rightarg = integer, function = int4eq);

CREATE VIEW public.high AS SELECT id, note FROM public.weakness WHERE level = 'high' WITH LOCAL CHECK OPTION;
CREATE MATERIALIZED VIEW public.per_asset AS
    SELECT asset_id, count(*) AS found, sum(public.twice(width)) AS sum FROM public.weakness GROUP BY asset_id;
CREATE UNIQUE INDEX per_asset_id ON public.per_asset (asset_id);
CREATE MATERIALIZED VIEW public.unfilled AS SELECT 1 AS one WITH NO DATA;
CREATE RULE no_delete AS ON DELETE TO public.nothing DO INSTEAD NOTHING;

ALTER TABLE public.asset ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_assets ON public.asset FOR SELECT TO PUBLIC USING (name <> 'Asset 7');

GRANT SELECT (id, name), UPDATE (labels) ON public.asset TO reader WITH GRANT OPTION;
GRANT USAGE ON SCHEMA audit TO reader;
GRANT EXECUTE ON FUNCTION public.twice TO reader;
REVOKE EXECUTE ON FUNCTION public.twice FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA audit GRANT SELECT ON TABLES TO reader;

SELECT lo_from_bytea(70001, decode(repeat('00ff', 9000), 'hex'));
SELECT lo_from_bytea(70002, 'second');
COMMENT ON LARGE OBJECT 70001 IS 'a large object';
GRANT SELECT ON LARGE OBJECT 70001 TO reader;
CREATE PUBLICATION news FOR TABLE public.weakness;
