"""Agents choose locations; each has the ``predict()`` of Stable-Baselines3's models."""

from agents.attention import AdditiveAttention, AttentionConfig, load_attention, save_attention
from agents.attention_agents import HardAttentionAgent, SoftAttentionAgent
from agents.base import Agent
from agents.loading import AGENT_NAMES, AgentSpec, find_agent, load_agent
from agents.scripted import CenterAgent, OracleAgent, RandomAgent, RasterScanAgent, ShuffledAgent, UniformAgent

__all__ = [
    "AGENT_NAMES",
    "AdditiveAttention",
    "Agent",
    "AgentSpec",
    "AttentionConfig",
    "CenterAgent",
    "HardAttentionAgent",
    "OracleAgent",
    "RandomAgent",
    "RasterScanAgent",
    "ShuffledAgent",
    "SoftAttentionAgent",
    "UniformAgent",
    "find_agent",
    "load_agent",
    "load_attention",
    "save_attention",
]
