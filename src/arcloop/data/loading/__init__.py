"""Samplers, batch loader and LightningDataModule over a store."""
