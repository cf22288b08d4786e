SET app.tenant = 'yota';
INSERT INTO tenants VALUES (1001, 'yota');
UPDATE zlimits SET most = 200;
UPDATE articles SET stock = 150 WHERE id = 7;
UPDATE zlimits SET most = 50;
VACUUM FULL lies;
INSERT INTO bag VALUES (2, clock_timestamp() + interval '0.1 s');
