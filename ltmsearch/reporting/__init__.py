"""Results for people: tables, plots, the HTML report, the dashboard and pictures of merges."""
