-- The tables of an invented portal for security findings.
CREATE TABLE auth_user (
    id bigserial PRIMARY KEY,
    username varchar(150) NOT NULL,
    email varchar(254) NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    date_joined timestamptz NOT NULL
);
CREATE TABLE product_type (
    id bigserial PRIMARY KEY,
    name varchar(255) NOT NULL
);
CREATE TABLE product (
    id bigserial PRIMARY KEY,
    product_type_id bigint NOT NULL,
    name varchar(255) NOT NULL,
    description text NOT NULL,
    created timestamptz NOT NULL
);
CREATE TABLE engagement (
    id bigserial PRIMARY KEY,
    product_id bigint NOT NULL,
    lead_id bigint,
    name varchar(300) NOT NULL,
    target_start date NOT NULL,
    target_end date NOT NULL
);
CREATE TABLE test (
    id bigserial PRIMARY KEY,
    engagement_id bigint NOT NULL,
    scan_type varchar(200) NOT NULL,
    performed timestamptz NOT NULL
);
CREATE TABLE finding (
    id bigserial PRIMARY KEY,
    test_id bigint NOT NULL,
    reporter_id bigint NOT NULL,
    title varchar(511) NOT NULL,
    severity varchar(20) NOT NULL CHECK (severity IN ('Critical', 'High', 'Medium', 'Low', 'Info')),
    cwe integer,
    cvss numeric(3, 1),
    active boolean NOT NULL,
    found date NOT NULL,
    file_path varchar(4000) NOT NULL,
    line integer,
    description text NOT NULL,
    mitigation text NOT NULL,
    "references" jsonb NOT NULL
);
CREATE TABLE endpoint (
    id bigserial PRIMARY KEY,
    product_id bigint NOT NULL,
    protocol varchar(20) NOT NULL,
    host varchar(500) NOT NULL,
    path varchar(500)
);
CREATE TABLE finding_endpoint (
    finding_id bigint NOT NULL,
    endpoint_id bigint NOT NULL,
    mitigated boolean NOT NULL DEFAULT false,
    PRIMARY KEY (finding_id, endpoint_id)
);
CREATE TABLE note (
    id bigserial PRIMARY KEY,
    finding_id bigint NOT NULL,
    author_id bigint NOT NULL,
    entry text NOT NULL,
    written timestamptz NOT NULL
);
