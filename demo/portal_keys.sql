-- Keys and indexes of the tables in portal.sql: after the rows, which is faster than checking each as it comes.
ALTER TABLE auth_user ADD CONSTRAINT auth_user_username UNIQUE (username);
ALTER TABLE product ADD CONSTRAINT product_type_fk FOREIGN KEY (product_type_id) REFERENCES product_type;
ALTER TABLE engagement
    ADD CONSTRAINT engagement_product_fk FOREIGN KEY (product_id) REFERENCES product,
    ADD CONSTRAINT engagement_lead_fk FOREIGN KEY (lead_id) REFERENCES auth_user;
ALTER TABLE test ADD CONSTRAINT test_engagement_fk FOREIGN KEY (engagement_id) REFERENCES engagement;
ALTER TABLE finding
    ADD CONSTRAINT finding_test_fk FOREIGN KEY (test_id) REFERENCES test,
    ADD CONSTRAINT finding_reporter_fk FOREIGN KEY (reporter_id) REFERENCES auth_user;
ALTER TABLE endpoint ADD CONSTRAINT endpoint_product_fk FOREIGN KEY (product_id) REFERENCES product;
ALTER TABLE finding_endpoint
    ADD CONSTRAINT finding_endpoint_finding_fk FOREIGN KEY (finding_id) REFERENCES finding,
    ADD CONSTRAINT finding_endpoint_endpoint_fk FOREIGN KEY (endpoint_id) REFERENCES endpoint;
ALTER TABLE note
    ADD CONSTRAINT note_finding_fk FOREIGN KEY (finding_id) REFERENCES finding,
    ADD CONSTRAINT note_author_fk FOREIGN KEY (author_id) REFERENCES auth_user;
CREATE INDEX finding_test ON finding (test_id);
CREATE INDEX finding_severity ON finding (severity, active);
CREATE INDEX finding_title ON finding (title);
CREATE INDEX note_finding ON note (finding_id);
CREATE INDEX endpoint_host ON endpoint (host);
