"""What is known of each endpoint: Pods, scraped metrics, requests in flight, adapters."""
